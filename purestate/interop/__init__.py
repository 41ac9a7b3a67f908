"""What other libraries hold, from and to what we do. Each file imports its library when it is called, and not before."""

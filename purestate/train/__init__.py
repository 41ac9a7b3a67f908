"""The stateful face."""

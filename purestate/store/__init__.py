"""DISK: where records and tensors are kept. Knows nothing of training. `README.md` has the format to the byte."""

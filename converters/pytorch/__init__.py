"""Files of PyTorch: tensors, the networks that they belong to, and their export."""

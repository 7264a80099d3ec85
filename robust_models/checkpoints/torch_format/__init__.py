"""PyTorch's own file formats of all ages, read without running anything in them."""

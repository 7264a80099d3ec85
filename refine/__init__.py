"""Changes images with a robust classifier."""

"""Where batches come from: three loaders that give the same images in the same order for the same seed."""

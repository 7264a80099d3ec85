"""How good images are: distances to real images, and scores of their own."""

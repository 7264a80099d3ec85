"""Generators as input: what others trained is sampled, image by image from seeds, and refined as it comes."""

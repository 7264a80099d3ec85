"""One module for each `bigroc refine --task NAME`: its flags, and the images and the objective that it begins with."""

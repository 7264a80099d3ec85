"""Image-text models as classifiers: their classes are texts that a person writes.

open_clip's, and this project's own: an image network and a small text tower (two_towers.py).
"""

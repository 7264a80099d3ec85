"""Makes robust classifiers."""

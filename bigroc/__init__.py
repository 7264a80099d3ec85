"""BIGRoC: robust classifiers, images refined with them, and measures of both, from one import."""

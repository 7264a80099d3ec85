"""Clean and robust accuracy of classifiers."""

"""Everything that is measured of classifiers, side by side."""

"""Studies: grids of classifiers, image sets and refinement settings, run cell by cell, with one report."""

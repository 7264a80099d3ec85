"""How far a classifier's input gradients point along the data."""

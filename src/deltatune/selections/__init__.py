"""A model and its statistics in, the parts of weights that may change out."""

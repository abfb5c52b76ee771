"""A weight in, its change out."""

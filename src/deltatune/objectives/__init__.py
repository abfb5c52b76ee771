"""Outputs and batch in, a loss out."""

"""Models in, text out."""

"""Recipes in, a fair measured comparison out."""

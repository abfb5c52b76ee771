"""Tasks that are built on the spot and need no network."""

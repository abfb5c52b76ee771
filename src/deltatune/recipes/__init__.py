"""One file for each published system: a function that returns its Recipe, and its citation."""

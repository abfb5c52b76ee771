"""The page and the figures of a delta's spectra; the room of reports does not load them."""

"""Methods that are not a change of weights: one file each, around any delta."""

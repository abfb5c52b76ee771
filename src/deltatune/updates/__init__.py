"""Named parameters in, optimizer groups and who is live out."""

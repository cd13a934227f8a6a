"""Files of weights: the list of known files, their download, and how they are read."""

"""Training of a segmenter on archives: augmentation, process groups, the training loop."""

"""Archives into a trained segmenter."""

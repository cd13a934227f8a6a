"""A run: its folder, its verbs, and the frame that every verb works in."""

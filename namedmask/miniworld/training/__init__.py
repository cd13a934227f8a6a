"""Train the mini world's models: one module, and one command, per model in `miniworld/weights/`."""

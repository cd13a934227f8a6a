"""How the mini world's own models were made: each module is one command, weights go to `weights/`."""

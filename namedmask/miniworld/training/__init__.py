"""How the mini world's models were made: a module each, a command each, into `weights/`."""

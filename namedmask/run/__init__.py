"""Runs: the run folder, the table of verbs, and the code that all verbs share."""

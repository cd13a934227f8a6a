"""The run folder, the tables of verbs and stages, and the code that all verbs share."""

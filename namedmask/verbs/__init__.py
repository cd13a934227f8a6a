"""The verbs, one per file: the steps of each in order, without how the steps are executed."""

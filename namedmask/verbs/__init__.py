"""The verbs, one per file: what each does, in which order, and never how."""

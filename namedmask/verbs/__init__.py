"""The verbs and commands. A verb lists its steps in order; an executor carries them out."""

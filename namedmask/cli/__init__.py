"""What is typed and shown: the commands, their options, their output."""

"""What the engine trains: one kind of task per file, and the examples and losses that they share."""

"""Models: one shared encoder, and the tasks that wrap it."""

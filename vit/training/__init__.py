"""Training: one LightningModule a task, its optimiser, and what watches it."""

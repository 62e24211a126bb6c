"""Checkpoints: any file or hub name to our weights, strictly; and the model folder that we write."""

"""Joins data to models: the one place, beside cli, that knows both `vit` and `datamodules`."""

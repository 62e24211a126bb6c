"""Measurements, side by side with peers: `python -m benchmarks.NAME --help`. What was measured is in results/."""

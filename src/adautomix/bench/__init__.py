"""Time the real training step, and plan a run."""

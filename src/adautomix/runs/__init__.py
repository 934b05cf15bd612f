"""Run folders: settings, records, checkpoints, weights and trained networks."""

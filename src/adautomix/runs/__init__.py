"""Run folders: settings, records, checkpoints, weights, trained networks."""

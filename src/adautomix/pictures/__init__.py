"""Pictures of mixed samples and grids of images."""

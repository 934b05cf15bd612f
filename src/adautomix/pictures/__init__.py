"""Grids of images and rows of mixed samples."""

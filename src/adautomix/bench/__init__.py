"""Measurements of speed: this package's own steps and mixes, and those of its peers."""

"""Evaluations of a trained network."""

"""Decode, crop and augment image files: what a decoding process runs.

Nothing here imports more than the standard library and Pillow, so that a process is ready in a
tenth of a second.
"""

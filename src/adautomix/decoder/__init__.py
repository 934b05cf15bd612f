"""Decode, crop and augment image files in decoding processes.

The modules import only the standard library and Pillow, so that a process starts in a tenth of a
second.
"""

"""Where images come from: one reader per source, and the table of published data sets.

Every reader returns a `Listing` of image files with labels, or `Arrays` in memory. `open_source`
in `open.py` finds the reader for the value of `--data`.
"""

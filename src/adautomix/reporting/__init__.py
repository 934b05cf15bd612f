"""Reports of runs and evaluations: tables for the terminal, rows of data, and HTML pages."""

"""Parameters and operations of mixing that several methods share."""

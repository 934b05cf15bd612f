"""Parameters, operations and networks that several mixing methods have in common."""

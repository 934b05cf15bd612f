"""The published tables as runs and evaluations, and the ledger of published against ours."""

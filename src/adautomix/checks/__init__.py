"""Proofs about anybody's mixing: `ledger` counts pixels, `doctor` looks at a training loop."""

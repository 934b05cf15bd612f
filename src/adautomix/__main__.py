"""`python -m adautomix`, and `torchrun --nproc_per_node 4 -m adautomix train …`."""

from adautomix.cli import main

if __name__ == "__main__":
    main()

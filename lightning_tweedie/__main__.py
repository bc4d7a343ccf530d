"""``python -m lightning_tweedie``."""

import sys

from lightning_tweedie.cli import main

# The guard matters: worker processes of a data loader may import this file again.
if __name__ == "__main__":
    sys.exit(main())

"""`python -m namedmask`, the same as the `namedmask` command."""

import sys

from namedmask.cli import main

if __name__ == "__main__":
    sys.exit(main())

"""`python -m namedmask` and the `namedmask` command.

Every child process imports this module again, so it imports almost nothing itself.
"""

import gc
import sys


def main() -> int:
    """Run the command on the command line and return its exit code."""
    from namedmask.cli.app import main

    code = main()
    gc.freeze()  # otherwise Python spends 0.15 s on a search for reference cycles at exit
    return code


if __name__ == "__main__":
    sys.exit(main())

"""`python -m namedmask` and the `namedmask` command.

Every child process imports this module again, so it imports almost nothing itself.
"""

import gc
import sys


def main() -> int:
    """Run the command on the command line and return its exit code."""
    try:
        from namedmask.cli.app import main
    except ImportError as error:
        sys.exit(f"error: namedmask is not installed as a whole: {error}. Install it again.")
    code = main()
    gc.freeze()  # otherwise Python spends 0.15 s on a search for reference cycles at exit
    return code


if __name__ == "__main__":
    sys.exit(main())

"""`python -m namedmask` and the `namedmask` command.

Every process that is begun beside this one imports this module again, so it imports next to nothing
itself.
"""

import gc
import sys


def main() -> int:
    """Run the verb on the command line and return the exit code."""
    from namedmask.cli.app import main

    code = main()
    gc.freeze()  # else Python looks for circles among all that was imported: 0.15 s
    return code


if __name__ == "__main__":
    sys.exit(main())

"""Run a verb by its name: `python -m ray_jobs VERB --config RUN.toml`; see `ray_jobs`."""

import argparse
import sys

from namedmask.run.verb_table import VERBS
from ray_jobs import main

if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m ray_jobs")
    parser.add_argument("verb", choices=VERBS)
    parser.add_argument("rest", nargs=argparse.REMAINDER, metavar="--config RUN.toml ...")
    given = parser.parse_args()
    sys.exit(main(given.verb, given.rest))

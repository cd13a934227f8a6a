"""Entry points for `ray job submit`, one verb each; `namedmask submit` strings them together.

They find the cluster that they run in by themselves. The result is one line of JSON on stdout,
`{"verb": ..., ...}`; progress and errors go to stderr, which Ray keeps in the same log. Exit codes
are those of the command `namedmask`: 0 done, 1 the run failed, 2 something given was wrong.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
from collections.abc import Sequence

from namedmask.cli.screen import explain
from namedmask.config import Config
from namedmask.errors import NamedMaskError
from namedmask.run.progress import LineProgress

ROW_VERBS = ("fetch", "embed")


def main(verb: str, arguments: Sequence[str] | None = None) -> int:
    """Run one verb of `namedmask` on Ray and return the exit code."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch is imported: see cli.main
    parser = argparse.ArgumentParser(prog=f"python -m ray_jobs.{verb}")
    parser.add_argument("--config", required=True, metavar="RUN.toml", help="the run file")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE")
    if verb in ROW_VERBS:
        parser.add_argument("--retry", action="append", metavar="REASON", help="rows to try again")
    given = parser.parse_args(arguments)
    asked = {"retry": given.retry} if getattr(given, "retry", None) else {}
    try:
        config = Config.load(given.config, given.set)
        from namedmask.engine import executor_of

        # verbs loads torch, which takes seconds
        module = "collect" if verb in ROW_VERBS else "verbs"
        run = getattr(importlib.import_module(f"namedmask.{module}"), verb)
        with executor_of(config) as executor:
            result = run(config, LineProgress(), executor, **asked)
    except (NamedMaskError, OSError) as error:
        return explain(error)
    sys.stdout.write(json.dumps({"verb": verb, **result}, ensure_ascii=False) + "\n")
    return 0

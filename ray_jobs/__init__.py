"""Entry points for `ray job submit`, one per verb; `namedmask submit` puts several into one job.

    ray job submit --address http://head:8265 --working-dir . -- \\
        python -m ray_jobs VERB --config RUN.toml [--set section.key=value ...]

A verb connects to the cluster on which its job runs. Its result is one line of JSON on stdout,
`{"verb": ..., ...}`. Progress and errors go to stderr, which Ray writes to the same log. The exit
codes are those of the command `namedmask`: 0 finished, 1 the run failed, 2 invalid input. A verb
that was killed resumes when it is submitted again.

The modules of this package, such as `python -m ray_jobs.embed`, run one verb each. The verb `build`
is in `build_archive`.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence

from namedmask.cli.guard import guarded, log_into
from namedmask.config import Config
from namedmask.run.progress import LineProgress
from namedmask.run.verb_table import VERBS


def main(name: str, arguments: Sequence[str] | None = None) -> int:
    """Run the verb `name` on Ray; return the exit code."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch is imported, see cli/app.py
    verb = VERBS[name]
    parser = argparse.ArgumentParser(prog=f"python -m ray_jobs {name}", description=verb.help)
    parser.add_argument("--config", required=True, metavar="RUN.toml", help="the run file")
    parser.add_argument(
        "--set", action="append", default=[], metavar="SECTION.KEY=VALUE",
        help="override a key; repeatable",
    )  # fmt: skip
    if verb.retries_rows:
        parser.add_argument(
            "--retry", action="append", metavar="CLASS",
            help="retry rows of a failure class (transient, …); repeatable",
        )  # fmt: skip
    given = parser.parse_args(arguments)
    options = {"retry": given.retry} if getattr(given, "retry", None) else {}

    def run() -> int:
        config = Config.load(given.config, given.set)
        log_into(config.run.out)
        from namedmask.engine import executor_of

        work = verb.load()
        with executor_of(config) as executor:
            result = work(config, LineProgress(), executor, **options)
        sys.stdout.write(json.dumps({"verb": name, **result}, ensure_ascii=False) + "\n")
        return 0

    return guarded(run)

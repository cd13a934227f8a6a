"""The executors, which do the work of the verbs: the plain loop, and graphs on a Ray cluster."""

from typing import TYPE_CHECKING

from namedmask import lazy_names

if TYPE_CHECKING:
    from namedmask.engine.executors import PLAIN_LOOP as PLAIN_LOOP
    from namedmask.engine.executors import executor_of as executor_of

__all__ = ["PLAIN_LOOP", "executor_of"]

__getattr__, __dir__ = lazy_names(
    __name__, {"PLAIN_LOOP": "executors", "executor_of": "executors"}
)  # fmt: skip

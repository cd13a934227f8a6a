"""The command line: commands, their options, and their output."""

from typing import TYPE_CHECKING

from namedmask import lazy_names

if TYPE_CHECKING:
    from namedmask.cli.app import main as main

__all__ = ["main"]

__getattr__, __dir__ = lazy_names(__name__, {"main": "app"})

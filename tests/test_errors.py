"""The exception tree and its exit codes."""

from __future__ import annotations

import inspect

import pytest

from namedmask import errors
from namedmask.errors import InputError, NamedMaskError, TooManyFailuresError, unknown_name

CLASSES = [
    value
    for value in vars(errors).values()
    if inspect.isclass(value) and issubclass(value, NamedMaskError)
]


@pytest.mark.parametrize("error", CLASSES, ids=lambda error: error.__name__)
def test_error_exit_code_is_2_for_input_and_1_for_runs(error: type[NamedMaskError]) -> None:
    assert error.exit_code == (2 if issubclass(error, InputError) else 1)


@pytest.mark.parametrize("error", CLASSES, ids=lambda error: error.__name__)
def test_error_is_drawn_in_the_tree(error: type[NamedMaskError]) -> None:
    assert error.__name__ in (errors.__doc__ or "")


def test_too_many_failures_is_no_input_error() -> None:
    assert not issubclass(TooManyFailuresError, InputError)


def test_unknown_name_near_a_known_one_proposes_it() -> None:
    message = str(unknown_name("saliency detector", "selfmsk", ["tokencut", "selfmask"]))
    assert message == (
        "saliency detector 'selfmsk' is unknown; known: selfmask, tokencut. "
        "Did you mean 'selfmask'?"
    )


def test_unknown_name_near_nothing_lists_the_known() -> None:
    message = str(unknown_name("benchmark", "qqqq", ["voc2012"]))
    assert message == "benchmark 'qqqq' is unknown; known: voc2012."

"""Every status has one class, and only what may go well another time is transient."""

import pytest

from namedmask.schema.status import REASONS, reason_of


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        ("http_404", "dead"), ("http_410", "dead"), ("http_302", "dead"), ("http_418", "dead"),
        ("http_500", "transient"), ("http_503", "transient"), ("http_429", "transient"),
        ("http_403", "blocked"), ("blocked_address", "blocked"), ("dns", "dead"),
        ("dns_failed", "transient"), ("robots_txt", "opted_out"), ("empty", "not_an_image"),
        ("too_many_pixels", "too_big"), ("content_changed", "changed"), ("crashed", "crashed"),
        ("ok", ""), ("unsafe", ""), ("has_face", ""), ("", ""),
    ],
)  # fmt: skip
def test_reason_of_status_is_its_class(status, reason):
    assert reason_of(status) == reason


def test_reasons_hold_each_status_once():
    statuses = [status for group in REASONS.values() for status in group]
    assert len(statuses) == len(set(statuses))

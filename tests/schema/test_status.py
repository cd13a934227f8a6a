"""Every status has one failure class, and only what may go well another time is transient."""

import pytest

from namedmask.schema.status import (
    FAILURE_CLASSES,
    FINDINGS,
    STATUSES,
    failure_class_of,
    http_code_of,
    of_http,
)


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        ("http_404", "dead"), ("http_410", "dead"), ("http_302", "dead"), ("http_418", "dead"),
        ("http_500", "transient"), ("http_503", "transient"), ("http_429", "transient"),
        ("http_408", "transient"), ("http_425", "transient"), ("http_401", "forbidden"),
        ("http_402", "forbidden"), ("http_407", "forbidden"), ("http_451", "forbidden"),
        ("http_403", "forbidden"), ("blocked_address", "forbidden"), ("dns", "dead"),
        ("proxy_failed", "transient"), ("crawl_delay", "transient"),
        ("opted_out", "opted_out"), ("opted_out_content_signal", "opted_out"),
        ("opted_out_content_usage", "opted_out"), ("opted_out_tdm", "opted_out"),
        ("dns_failed", "transient"), ("robots_txt", "opted_out"), ("empty", "not_an_image"),
        ("too_many_pixels", "too_big"), ("truncated", "not_an_image"),
        ("content_changed", "changed"), ("crashed", "crashed"),
        ("timeout", "transient"), ("reset", "transient"), ("unreachable", "transient"),
        ("refused", "dead"), ("bad_url", "dead"), ("no_file", "dead"),
        ("ok", ""), ("unsafe", ""), ("has_face", ""), ("blocked", ""), ("", ""), ("http_x", ""),
    ],
)  # fmt: skip
def test_failure_class_of_status(status, expected):
    assert failure_class_of(status) == expected


def test_table_has_a_known_class_and_a_meaning_for_each_status():
    for word, status in STATUSES.items():
        assert status.word == word == word.lower()
        assert status.failure_class in ("", *FAILURE_CLASSES)
        assert status.meaning
    assert set(FINDINGS) == {"has_face", "no_mask", "content_changed"}


@pytest.mark.parametrize("code", [100, 302, 404, 503])
def test_http_status_holds_its_code(code):
    assert http_code_of(of_http(code)) == code

"""What tags, headers and robots.txt ask for."""

import asyncio
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from namedmask.fetch.politeness import Host, opted_out, retry_after
from namedmask.fetch.robots import may_fetch

MINE = ("noai", "noimageai", "noml")


@pytest.mark.parametrize(
    ("tags", "out"),
    [
        (["noai"], True), (["noindex, noimageai"], True), (["noindex", "NoML"], True),
        (["otherbot: noai"], False), (["namedmask: noai"], True), (["*: noai"], True),
        (["otherbot: noindex, noai"], False), (["otherbot: noindex, namedmask: noai"], True),
        (["noindex, nofollow"], False), ([""], False), ([], False),
        (["unavailable_after: 25 Jun 2030"], False),
        (["max-image-preview: large, noai"], True),
        (["max-snippet:5, max-video-preview:-1,noml"], True),
        (["unavailable_after: 25 Jun 2030 15:00:00 PST, noai"], True),
        (["unavailable_after: Friday, 25-Jun-30 15:00:00 UTC, noai"], True),
        (["otherbot: max-snippet: 5, noai"], False), (["namedmask: max-snippet: 5, noai"], True),
        (["NamedMask:noai"], True), (["namedmask : noai"], True), ([":noai"], False),
    ],
)  # fmt: skip
def test_opted_out_reads_tags_for_all_agents_and_ours(tags, out):
    assert opted_out(tags, "NamedMask/0.1 (+https://example.org)", MINE) is out


@pytest.mark.parametrize(
    ("value", "seconds"),
    [("0", 0), ("120", 120), (" 7 ", 7), ("", 0), ("soon", 0), ("-5", 0), ("1.5", 0), ("٣", 0),
     ("9" * 5000, float("inf")), ("Wed, 21 Oct 2015 07:28:00 GMT", 0)],
)  # fmt: skip
def test_retry_after_seconds_and_nonsense(value, seconds):
    assert retry_after(value) == seconds


def test_retry_after_date_is_counted_from_now():
    date = datetime.now(UTC) + timedelta(seconds=90)
    assert 80 < retry_after(format_datetime(date, usegmt=True)) <= 90
    assert 80 < retry_after(date.strftime("%a, %d %b %Y %H:%M:%S")) <= 90


@given(st.text() | st.from_regex(r"[A-Z][a-z]{2}, \d+ [A-Z][a-z]{2} \d+ \d+:\d+:\d+ [+-]?\w*"))
def test_retry_after_any_text_is_a_number_from_zero(value):
    assert retry_after(value) >= 0


AGENT = "NamedMask/0.1 (+https://example.org)"


@pytest.mark.parametrize(
    ("text", "path", "allowed"),
    [
        (b"", "/a.jpg", True),
        (b"User-agent: *\nDisallow: /", "/a.jpg", False),
        (b"User-agent: *\nDisallow: /private/", "/a.jpg", True),
        (b"User-agent: *\nDisallow: /private/", "/private/a.jpg", False),
        (b"User-agent: *\nDisallow:", "/a.jpg", True),
        (b"User-agent: otherbot\nDisallow: /", "/a.jpg", True),
        (b"User-agent: namedmask\nDisallow: /\n\nUser-agent: *\nAllow: /", "/a.jpg", False),
        (b"User-agent: *\nDisallow: /\n\nUser-agent: NamedMask\nAllow: /", "/a.jpg", True),
        (b"\xef\xbb\xbfUser-agent: *\r\nDisallow: /", "/a.jpg", False),
        (b"<html>not found</html>", "/a.jpg", True),
        (bytes(range(256)) * 9, "/a.jpg", True),
    ],
)
def test_may_fetch_keeps_to_the_rules(text, path, allowed):
    assert may_fetch(text, AGENT, path) is allowed


def test_host_pauses_add_up_until_it_is_given_up():
    async def story():
        host = Host(2, patience_s=0.5)
        assert await host.wait_for_pause() == ""
        host.record_pause("http_429", 0.1)
        host.record_pause("http_429", 0.1)  # at the same time: one pause
        assert await host.wait_for_pause() == ""
        assert 0.3 < host.patience_s < 0.45
        host.record_pause("http_503", 0.6)
        return await host.wait_for_pause()

    assert asyncio.run(story()) == "http_503"

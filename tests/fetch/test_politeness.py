"""What tags and headers ask for."""

import asyncio
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from namedmask.config import FetchConfig
from namedmask.fetch.politeness import Host, header_opt_out, opted_out, retry_after
from namedmask.fetch.stage import Fetch
from namedmask.schema.status import failure_class_of
from tests import toys
from tests.raw_server import RawServer, answer

MINE = ("noai", "noimageai", "noml")
PHOTO = toys.jpeg(toys.disk((30, 30, 200), 1))


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
SIGNAL, USAGE, TDM = "opted_out_content_signal", "opted_out_content_usage", "opted_out_tdm"

HEADERS = {
    "X-Robots-Tag: noai": "opted_out", "X-Robots-Tag: noimageai": "opted_out",
    "X-Robots-Tag: noml": "opted_out", "X-Robots-Tag: noindex": "opted_out",
    "X-Robots-Tag: nofollow, noimageindex": "opted_out", "X-Robots-Tag: none": "opted_out",
    "X-Robots-Tag: namedmask: noindex": "opted_out", "X-Robots-Tag: googlebot: noindex": "ok",
    "X-Robots-Tag: nofollow, noarchive": "ok", "X-Robots-Tag: all": "ok",
    "Content-Signal: ai-train=no": SIGNAL, "content-signal: search=yes,AI-Train=No": SIGNAL,
    'Content-Signal: ai-train="no"': SIGNAL, "Content-Signal: search=no, ai-input=no": "ok",
    "Content-Signal: ai-train=yes": "ok", "Content-Signal: ai-train": "ok",
    "Content-Signal: ai-train=yes\r\nContent-Signal: ai-train=no": SIGNAL,
    "Content-Usage: train-ai=n": USAGE, "Content-Usage: search=y, train-ai=n": USAGE,
    "Content-Usage: train-ai=n;note=1": USAGE, "Content-Usage: train-ai=y": "ok",
    "Content-Usage: search=n": "ok", "Content-Usage: train-ai=n, train-ai=y": "ok",
    "Content-Usage: ": "ok", "Content-Usage: ;=,=,": "ok",
    "TDM-Reservation: 1": TDM, "tdm-reservation:1 ": TDM, "TDM-Reservation: 0": "ok",
    "TDM-Reservation: 1\r\nTDM-Policy: https://example.org/policy.json": TDM,
    "TDM-Policy: https://example.org/policy.json": "ok", "X: noai": "ok",
}  # fmt: skip


@pytest.fixture(scope="module")
def server():
    answers = {f"/{n}": answer(PHOTO, line) for n, line in enumerate(HEADERS)}
    with RawServer(answers) as running:
        yield running


def statuses(urls, **options):
    options = {"allow_loopback": True, "retries": 0, **options}
    table = pa.table({"url": urls, "status": ["ok"] * len(urls)})
    return Fetch(FetchConfig(**options))(table)["status"].to_pylist()


def test_headers_that_forbid_learning_have_a_status_each(server):
    urls = [f"{server.url}/{n}" for n in range(len(HEADERS))]
    assert dict(zip(HEADERS, statuses(urls), strict=True)) == HEADERS
    assert set(statuses(urls, honor_opt_out=False)) == {"ok"}
    assert {failure_class_of(status) for status in HEADERS.values()} == {"", "opted_out"}


def test_headers_tags_that_count_are_those_of_the_config(server):
    urls = [f"{server.url}/{n}" for n in range(len(HEADERS))]
    only = dict(zip(HEADERS, statuses(urls, opt_out_tags=("NoArchive",)), strict=True))
    assert only["X-Robots-Tag: nofollow, noarchive"] == "opted_out"
    assert only["X-Robots-Tag: noindex"] == only["X-Robots-Tag: none"] == "ok"
    assert only["TDM-Reservation: 1"] == TDM


@settings(deadline=None, max_examples=300)
@given(st.lists(st.text() | st.sampled_from(["noai", "*: noai", "ai-train=no", "1", "a:b"])))
def test_headers_of_any_text_give_a_status_or_none(values):
    found = header_opt_out(lambda _: values, AGENT, MINE)
    assert found in ("", "opted_out", SIGNAL, USAGE, TDM)
    assert found or not {"noai", "*: noai", "ai-train=no", "1"} & set(values)


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

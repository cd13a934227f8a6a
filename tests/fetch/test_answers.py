"""Answers that browsers and urllib take: none is refused, and none harms the next on its way."""

import gzip
import random
import socket
import time
from collections import defaultdict

import pyarrow as pa
import pytest

from namedmask.config import FetchConfig
from namedmask.fetch import addresses
from namedmask.fetch.answers import HEAD_BYTES, body_bytes, repaired
from namedmask.fetch.stage import Fetch
from tests import toys
from tests.raw_server import RawServer, answer, head

PHOTO = toys.jpeg(toys.disk((200, 30, 30), 1))
PACKED = gzip.compress(PHOTO)
LENGTH = f"Content-Length: {len(PHOTO)}"
CHUNKED = head("Transfer-Encoding: chunked")


@pytest.fixture(autouse=True)
def fresh():
    yield
    addresses.resolved.clear()


def statuses(urls, **options):
    options = {"allow_loopback": True, "retries": 0, "timeout_s": 5.0, **options}
    table = pa.table({"url": urls, "status": ["ok"] * len(urls)})
    return Fetch(FetchConfig(**options))(table)["status"].to_pylist()


def said(*parts, close=False):
    """Return the answer that says its parts, one packet after the other."""

    def spoken(talk):
        talk.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for number, part in enumerate(parts):
            if number:
                talk.wait(0.05)
            talk.say(part)
        if close:
            talk.connection.shutdown(socket.SHUT_RDWR)

    return spoken


def raw(line, *others):
    return head(*others).replace(b"\r\n\r\n", b"\r\n" + line + b"\r\n\r\n")


def chunks(body, extension=b"", trailers=b""):
    return b"%x%s\r\n" % (len(body), extension) + body + b"\r\n0\r\n" + trailers + b"\r\n"


BEHIND = {
    "space": b" ", "nul": b"\0", "comment": b"<!-- served in 3 ms -->", "bom": b"\xef\xbb\xbf",
    "lf": b"\n", "crlf": b"\r\n", "megabytes": b"x" * 3_000_000,
    "answer": b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc",
}  # fmt: skip

TAKEN = {
    **{f"{name}_in_one": said(head(LENGTH) + PHOTO + tail) for name, tail in BEHIND.items()},
    **{f"{name}_with_body": said(head(LENGTH), PHOTO + tail) for name, tail in BEHIND.items()},
    **{f"{name}_and_end": said(head(LENGTH) + PHOTO + tail, close=True)
       for name, tail in BEHIND.items()},
    **{f"{name}_later": said(head(LENGTH) + PHOTO, tail)
       for name, tail in BEHIND.items() if name != "answer"},  # whose nobody can tell
    **{f"{name}_chunked": said(CHUNKED + chunks(PHOTO) + tail) for name, tail in BEHIND.items()},
    **{f"header_{size}": said(head(LENGTH, "X: " + "y" * size) + PHOTO)
       for size in (9_000, 20_000, 60_000, 65_536)},
    "header_in_packets": said(head(LENGTH, "X: " + "y" * 60_000)[:30_000],
                              head(LENGTH, "X: " + "y" * 60_000)[30_000:], PHOTO),
    "headers_many": said(head(LENGTH, *["a:"] * 15_000) + PHOTO),
    "header_folded": said(head(LENGTH, "X: a\r\n  b") + PHOTO),
    "header_twice": said(head(LENGTH, "ETag: 1", "ETag: 2", "Server: x", "Server: y") + PHOTO),
    "header_without_colon": said(head("Cache Control", LENGTH, "X y: z") + PHOTO),
    "header_of_latin_1": said(raw(b"X-Owner: Andr\xe9", LENGTH) + PHOTO),
    "header_name_of_latin_1": said(raw(b"X-\xe9: y", LENGTH) + PHOTO),
    "header_with_nul": said(raw(b"X: a\0b", LENGTH) + PHOTO),
    "header_name_and_space": said(head(f"Content-Length : {len(PHOTO)}") + PHOTO),
    "length_twice_equal": said(head(LENGTH, "X: y", LENGTH) + PHOTO),
    "length_listed": said(head(f"Content-Length: {len(PHOTO)}, {len(PHOTO)}") + PHOTO),
    "length_with_plus": said(head(f"Content-Length: +{len(PHOTO)}") + PHOTO),
    "length_among_spaces": said(head(f"Content-Length: \t {len(PHOTO)} \t") + PHOTO),
    "length_empty": said(head("Content-Length: ") + PHOTO, close=True),
    "length_beside_chunks": said(head(LENGTH, "Transfer-Encoding: chunked") + chunks(PHOTO)),
    "chunk_extension": said(CHUNKED + chunks(PHOTO, b';a=b;c="d"')),
    "chunk_trailers": said(CHUNKED + chunks(PHOTO, b"", b"X-Sum: 1\r\nX-Time: 2\r\n")),
    "first_http": said(b"HTTP/1.0 200 OK\r\n\r\n" + PHOTO, close=True),
    "without_reason": said(head(LENGTH, status="200") + PHOTO),
    "line_feeds_alone": said(head(LENGTH).replace(b"\r\n", b"\n") + PHOTO),
    "empty_lines_before": said(b"\r\n\r\n" + head(LENGTH) + PHOTO),
    "continue": said(head(status="100 Continue") + head(LENGTH) + PHOTO),
    "hints": said(head("Link: </a>", status="103 Early Hints"), head(LENGTH) + PHOTO),
    "packed": said(head("Content-Encoding: gzip", f"Content-Length: {len(PACKED)}") + PACKED),
    "packed_but_length_of_unpacked": said(
        head("Content-Encoding: gzip", f"Content-Length: {len(PHOTO)}")
        + gzip.compress(PHOTO, 9), close=True),
}  # fmt: skip

REFUSED = {
    "length_unequal": ("bad_response", said(head(LENGTH, "Content-Length: 7") + PHOTO)),
    "length_listed_unequal": ("bad_response", said(head("Content-Length: 5, 6") + PHOTO)),
    "length_of_two_words": ("bad_response", said(head("Content-Length: 1 2") + PHOTO)),
    "length_negative": ("bad_response", said(head("Content-Length: -1") + PHOTO)),
    "head_too_big": ("bad_response", said(head(LENGTH, "X: " + "y" * HEAD_BYTES) + PHOTO)),
    "chunk_malformed": ("bad_response", said(CHUNKED + b"zz\r\n")),
    "chunk_malformed_later": ("bad_response", said(CHUNKED, b"zz\r\n")),
    "chunk_negative": ("bad_response", said(CHUNKED, b"-5\r\n")),
    "chunks_cut": ("reset", said(CHUNKED + chunks(PHOTO)[:200], close=True)),
    "body_cut": ("reset", said(head(LENGTH) + PHOTO[:100], close=True)),
    "head_cut": ("reset", said(head(LENGTH)[:30], close=True)),
    "length_shorter_than_image": ("truncated", said(head("Content-Length: 500") + PHOTO)),
    "packed_cut": ("truncated", said(head("Content-Encoding: gzip", "Content-Length: 400")
                                     + PACKED)),
    "no_body": ("empty", said(head(status="204 No Content") + b"more")),
    "location_empty": ("http_302", answer(b"", "Location: ", status="302 Found")),
}  # fmt: skip


@pytest.fixture(scope="module")
def server():
    refused = {name: said_ for name, (_, said_) in REFUSED.items()}
    answers = {f"/{name}": one for name, one in {**TAKEN, **refused}.items()}
    with RawServer({**answers, "/good": answer(PHOTO)}) as running:
        yield running


@pytest.mark.parametrize("name", TAKEN)
def test_answer_that_others_take_is_taken_and_harms_no_other(server, name):
    urls = [f"{server.url}/{name}", *[f"{server.url}/good"] * 3] * 3
    assert statuses(urls, per_host=1) == ["ok"] * len(urls)


@pytest.mark.parametrize("name", REFUSED)
def test_answer_that_is_broken_has_its_reason_and_harms_no_other(server, name):
    urls = [f"{server.url}/good", f"{server.url}/{name}", *[f"{server.url}/good"] * 2]
    begun = time.monotonic()
    assert statuses(urls, per_host=1) == ["ok", REFUSED[name][0], "ok", "ok"]
    assert time.monotonic() - begun < 4


def test_answer_with_bytes_behind_it_ends_its_connection():
    with RawServer({"/tail": said(head(LENGTH) + PHOTO + b" "), "/good": answer(PHOTO)}) as server:
        assert statuses([f"{server.url}/good"] * 5, per_host=1) == ["ok"] * 5
        assert server.connections == 1
        assert statuses([f"{server.url}/tail"] * 5, per_host=1) == ["ok"] * 5
        assert server.connections == 6


def test_repaired_leaves_a_head_alone_that_has_no_fault():
    text = head(LENGTH, "X: y: z", "Empty:", "X-a_b.c: \xe9".encode().decode("latin-1"))
    assert repaired(text) is text
    assert body_bytes(text) == len(PHOTO)


def framed(rng):
    """Return one good answer in one of the ways that HTTP has, and whether it ends by closing."""
    names = [f"X-{number}: {'y' * rng.choice([0, 9, 900])}" for number in range(rng.randrange(5))]
    way = rng.choice(["length", "chunks", "close", "packed"])
    if way == "chunks":
        cuts = sorted(rng.sample(range(1, len(PHOTO)), 3))
        parts = [PHOTO[a:b] for a, b in zip([0, *cuts], [*cuts, len(PHOTO)], strict=True)]
        body = b"".join(b"%X\r\n%s\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"
        return head("Transfer-Encoding: chunked", *names) + body, False
    if way == "packed":
        return head("Content-Encoding: gzip", *names, f"content-length: {len(PACKED)}") + PACKED, 0
    if way == "close":
        return head("Connection: close", *names) + PHOTO, True
    before = head(status="103 Early Hints") if rng.random() < 0.3 else b""
    return before + head(*names, *[LENGTH] * rng.randint(1, 2)) + PHOTO, False


def in_packets(rng, data):
    cuts = sorted(rng.sample(range(1, len(data)), rng.randrange(4)))
    return [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)]


@pytest.mark.slow
def test_answer_in_any_packets_with_anything_behind_is_taken():
    rng = random.Random(0)
    answers = defaultdict(lambda: answer(PHOTO))
    for number in range(400):
        whole, ends = framed(rng)
        tail = b"" if ends else rng.choice([b"", rng.randbytes(rng.choice([1, 9, 70_000]))])
        answers[f"/{number}"] = said(*in_packets(rng, whole + tail), close=bool(ends or tail))
    with RawServer(answers) as server:
        urls = [f"{server.url}/{name}" for n in range(400) for name in (n, "good")]
        assert statuses(urls, timeout_s=60.0) == ["ok"] * 800


@pytest.mark.slow
def test_answer_cut_anywhere_has_a_reason_that_is_no_crash():
    rng = random.Random(1)
    answers = defaultdict(lambda: answer(PHOTO))
    for number in range(400):
        whole, _ = framed(rng)
        answers[f"/{number}"] = said(*in_packets(rng, whole[: rng.randrange(8, len(whole) - 8)]),
                                     close=True)  # fmt: skip
    with RawServer(answers) as server:
        urls = [f"{server.url}/{name}" for n in range(400) for name in (n, "good")]
        found = statuses(urls, timeout_s=60.0)
    assert set(found[1::2]) == {"ok"}
    assert set(found[::2]) <= {"reset", "bad_response", "truncated", "empty", "not_an_image"}

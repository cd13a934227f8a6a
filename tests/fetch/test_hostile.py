"""Servers and names that mean harm: each meets its bound, and the rows beside it notice nothing."""

import asyncio
import errno
import gzip
import socket
import ssl
import struct
import subprocess
import sys
import threading
import time
import zlib

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from namedmask.config import FetchConfig
from namedmask.fetch import addresses, download
from namedmask.fetch import stage as fetch_module
from namedmask.fetch.stage import Fetch
from tests import toys
from tests.raw_server import RawServer, answer, certificate, head

PHOTO = toys.jpeg(toys.disk((200, 30, 30), 1))
ZEROS = 2**28
METADATA = "http://169.254.169.254/latest/meta-data/"


def squeezed(size, window_bits):
    """Return `size` zeros as one zlib or gzip stream, a thousandth of it."""
    packer = zlib.compressobj(9, zlib.DEFLATED, window_bits)
    block = bytes(2**24)
    return b"".join(packer.compress(block) for _ in range(size // 2**24)) + packer.flush()


def png(width, height, pixels):
    def chunk(kind, data):
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    parts = (chunk(b"IHDR", header), chunk(b"IDAT", pixels), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def then(*words, end=None):
    """Return the answer that says `words`, then ends the talk by `end`."""

    def spoken(talk):
        talk.say(*words)
        if end:
            end(talk)

    return spoken


def moved(place):
    return answer(b"", f"Location: {place}", status="302 Found")


def close(talk):
    talk.connection.shutdown(socket.SHUT_RDWR)


def for_ever(part, every=0.0):
    return lambda talk: talk.for_ever(part, every)


def late(*words, end=None):
    """Return the answer that says one word after the other: the client has read the head before."""

    def spoken(talk):
        for word in words:
            talk.say(word)
            talk.wait(0.2)
        if end:
            end(talk)

    return spoken


LENGTH = f"Content-Length: {len(PHOTO)}"
OK_HEAD = head(LENGTH)
TRAILERS = b"X: y\r\n" * 4000
CHUNKED = head("Transfer-Encoding: chunked")
BEGUN = b"HTTP/1.1 200 OK\r\n"

HOSTILE = {
    "endless_body": ("too_big", then(head(), end=for_ever(b"x" * 65536))),
    "endless_chunks": ("too_big", then(CHUNKED, end=for_ever(b"1000\r\n" + b"x" * 4096 + b"\r\n"))),
    "slow_headers": ("timeout", then(BEGUN, end=for_ever(b"X: y\r\n", 0.1))),
    "slow_header": ("timeout", then(BEGUN + b"X: ", end=for_ever(b"y", 0.1))),
    "slow_body": ("timeout", then(OK_HEAD, end=for_ever(b"\xff", 0.1))),
    "silent": ("timeout", then(end=for_ever(b"", 1))),
    "endless_continue": ("timeout", then(end=for_ever(head(status="100 Continue"), 0.001))),
    "endless_chunk_name": ("timeout", then(CHUNKED, b"5;", end=for_ever(b"x" * 4096, 0.001))),
    "redirect_loop": ("too_many_redirects", moved("/redirect_loop")),
    "redirect_to_metadata": ("blocked_address", moved(METADATA)),
    "redirect_to_file": ("bad_url", moved("file:///etc/hostname")),
    "redirect_to_other_scheme": ("bad_url", moved("gopher://127.0.0.1/")),
    "redirect_to_data": ("bad_url", moved("data:image/png;base64,AAAA")),
    "redirect_to_nonsense": ("bad_url", moved("http://[::1")),
    "redirect_to_no_port": ("bad_url", moved("http://127.0.0.1:99999/")),
    "gzip_bomb": ("too_big", answer(squeezed(ZEROS, 31), "Content-Encoding: gzip")),
    "deflate_bomb": ("too_big", answer(squeezed(ZEROS, 15), "Content-Encoding: deflate")),
    "unknown_packing": ("bad_response", answer(PHOTO, "Content-Encoding: br")),
    "pixel_bomb": ("too_many_pixels", answer(png(50_000, 50_000, squeezed(50_000 * 6251, 15)))),
    "length_too_long": ("reset", then(head(f"Content-Length: {len(PHOTO) * 2}"), PHOTO, end=close)),
    "length_too_short": ("truncated", then(head("Content-Length: 500") + PHOTO)),
    "length_twice": ("bad_response", then(head("Content-Length: 5", "Content-Length: 6"), PHOTO)),
    "length_negative": ("bad_response", then(head("Content-Length: -1"), PHOTO)),
    "length_without_end": ("bad_response", then(head("Content-Length: " + "9" * 5000), PHOTO)),
    "page_as_image": ("not_an_image", answer(b"<html>for sale</html>", "Content-Type: image/jpeg")),
    "nothing": ("empty", answer(b"", "Content-Type: image/jpeg")),
    "header_bomb": ("bad_response", then(BEGUN + b"X: ", end=for_ever(b"y" * 65536))),
    "headers_bomb": ("bad_response", then(BEGUN, end=for_ever(b"X: yyyy\r\n" * 4000))),
    "trailers_bomb": ("bad_response", then(CHUNKED + b"0\r\n" + TRAILERS, end=for_ever(TRAILERS))),
    "late_trailers_bomb": ("bad_response", late(CHUNKED, b"0\r\n", end=for_ever(TRAILERS))),
    "late_bad_gzip": ("bad_response", late(head("Content-Encoding: gzip", LENGTH), PHOTO)),
    "late_hang_up_in_chunk": ("reset", late(CHUNKED, b"10\r\nabc", end=close)),
    "status_bomb": ("bad_response", then(end=for_ever(b"y" * 65536))),
    "old_http": ("bad_response", then(b"<html>hello</html>", end=close)),
    "noise": ("bad_response", then(b"\x00\xff\r\n" * 100, end=close)),
    "reset_in_body": ("reset", then(OK_HEAD, PHOTO[:100], end=lambda talk: talk.reset())),
    "hang_up": ("reset", then(end=close)),
    "switch": ("http_101", then(head("Upgrade: x", status="101 Switch"), end=for_ever(b"x" * 999))),
}  # fmt: skip


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    monkeypatch.setattr(fetch_module, "BACKOFF_S", 0.01)
    yield
    addresses.resolved.clear()
    download.robots_texts.clear()


@pytest.fixture(scope="module")
def server():
    answers = {f"/{name}": said for name, (_, said) in HOSTILE.items()}
    with RawServer({**answers, "/ok": answer(PHOTO)}) as running:
        yield running


@pytest.fixture
def connected(monkeypatch):
    """The addresses asked to be connected to; those off this machine go no further."""
    asked = []
    connect = asyncio.SelectorEventLoop.sock_connect

    async def noted(self, sock, address):
        asked.append(address[0])
        if not address[0].startswith("127."):
            raise ConnectionRefusedError(errno.ECONNREFUSED, "a test stays on its machine")
        return await connect(self, sock, address)

    monkeypatch.setattr(asyncio.SelectorEventLoop, "sock_connect", noted)
    return asked


@pytest.fixture
def names(monkeypatch):
    """A name server: what each name answers, one list of addresses after the other."""
    known = {}
    real = socket.getaddrinfo

    def ask(host, port, family=0, *rest, **options):
        if host not in known:
            return real(host, port, family, *rest, **options)
        answers = known[host]
        if isinstance(answers, OSError):
            raise answers
        now = answers.pop(0) if len(answers) > 1 else answers[0]
        kinds = {False: socket.AF_INET, True: socket.AF_INET6}
        return [(kinds[":" in one], socket.SOCK_STREAM, 6, "", (one, port)) for one in now]

    monkeypatch.setattr(socket, "getaddrinfo", ask)
    return known


@pytest.fixture
def no_names(monkeypatch):
    """The system reads every spelling of a number as it does, and asks nobody for a name."""
    real = socket.getaddrinfo

    def read(host, port, family=0, kind=0, *_):
        return real(host, port, family, kind, flags=socket.AI_NUMERICHOST)

    monkeypatch.setattr(socket, "getaddrinfo", read)


def statuses(urls, **options):
    options = {"allow_loopback": True, "retries": 0, "timeout_s": 20.0, **options}
    table = pa.table({"url": urls, "status": ["ok"] * len(urls)})
    result = Fetch(FetchConfig(**options))(table).to_pylist()
    for row in result:
        assert (row["image"] is not None) == (row["status"] == "ok")
    return [row["status"] for row in result]


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_answer_has_its_reason_and_harms_no_other_row(server, connected, name):
    word, _ = HOSTILE[name]
    timeout_s = 1.5 if word == "timeout" else 20.0
    good = f"{server.url}/ok"
    begun = time.monotonic()
    found = statuses([good, f"{server.url}/{name}", good, good], timeout_s=timeout_s)
    assert time.monotonic() - begun < timeout_s + 15
    assert found == ["ok", word, "ok", "ok"]
    assert set(connected) == {"127.0.0.1"}


MEMORY = """
import sys
import pyarrow as pa
from namedmask.config import FetchConfig
from namedmask.fetch import Fetch

def peak():
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024

def run(*names):
    urls = [sys.argv[1] + name for name in names]
    config = FetchConfig(allow_loopback=True, retries=0, max_bytes=4 * 2**20)
    table = pa.table({"url": urls, "status": ["ok"] * len(urls)})
    return Fetch(config)(table)["status"].to_pylist()

run("/ok", "/page_as_image")
before = peak()
print(run(*sys.argv[2:]), peak() - before)
"""


@pytest.mark.parametrize(
    "names", [["endless_body", "endless_chunks"], ["gzip_bomb", "deflate_bomb"], ["pixel_bomb"],
              ["header_bomb", "headers_bomb", "status_bomb", "trailers_bomb"]],
)  # fmt: skip
def test_hostile_answer_takes_no_memory_beyond_its_bound(server, names):
    places = [f"/{name}" for name in names]
    command = [sys.executable, "-c", MEMORY, server.url, *places]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    words, _, more = done.stdout.strip().rpartition(" ")
    assert words == str([HOSTILE[name][0] for name in names])
    # each: the body so far, the piece that was one too many, what waits in the socket's buffers
    assert int(more) < len(names) * 16 * 2**20


def test_hostile_host_that_asks_for_quiet_gets_it_and_no_more(names):
    times = []

    def busy(talk):
        times.append(time.monotonic())
        said = answer(b"", "Retry-After: 1", status="429 Too Many Requests")
        (said if len(times) == 1 else answer(PHOTO))(talk)

    names["other.example"] = [["127.0.0.1"]]
    with RawServer({"/busy": busy, "/ok": answer(PHOTO)}) as server:
        urls = [f"{server.url}/busy/{number}" for number in range(3)]
        urls.append(f"http://other.example:{server.port}/ok")
        assert statuses(urls, retries=1, per_host=1) == ["ok"] * 4
    assert len(times) == 4
    assert times[1] - times[0] >= 1.0, "also the rows that had not asked yet"


def test_hostile_retry_after_without_end_stalls_nothing():
    said = answer(b"", "Retry-After: 86400", status="503 Service Unavailable")
    with RawServer({"/busy": said}) as server:
        begun = time.monotonic()
        urls = [f"{server.url}/busy/{number}" for number in range(200)]
        found = statuses(urls, retries=3, per_host=2)
        assert time.monotonic() - begun < 20
        assert found == ["http_503"] * 200
        assert len(server.paths) <= 2, "a host that wants quiet longer than we wait is left alone"


def test_hostile_retry_after_again_and_again_adds_up(names):
    said = answer(b"", "Retry-After: 1", status="429 Too Many Requests")
    with RawServer({"/busy": said}) as server:
        begun = time.monotonic()
        urls = [f"{server.url}/busy/{number}" for number in range(50)]
        assert statuses(urls, retries=5, max_pause_s=1.5) == ["http_429"] * 50
        assert time.monotonic() - begun < 20
        assert len(server.paths) < 100, "of the 300 that the retries allow"


def test_hostile_redirect_to_this_machine_is_never_connected(server, connected, monkeypatch):
    # one port of this machine stands for the public web: all others are what must not be reached
    real = addresses.open_socket
    monkeypatch.setattr(
        addresses, "open_socket", lambda _, info: real(info[4][1] == server.port, info)
    )
    with RawServer({"/ok": answer(PHOTO)}) as inside:
        places = [
            f"http://{host}:{inside.port}/ok"
            for host in ("127.0.0.1", "localhost", "127.1", "2130706433", "0x7f.1", "0177.0.0.1",
                         "[::1]", "[::ffff:127.0.0.1]", "[64:ff9b::7f00:1]", "0.0.0.0", "[::]")
        ]  # fmt: skip
        answers = {f"/{number}": moved(place) for number, place in enumerate(places)}
        monkeypatch.setattr(server, "answers", {**server.answers, **answers})
        urls = [f"{server.url}/ok", *(f"{server.url}/{number}" for number in range(len(places)))]
        found = statuses(urls, allow_loopback=False)
    assert found[0] == "ok"
    assert set(found[1:]) <= {"blocked_address", "bad_url"}
    assert inside.connections == 0
    assert set(connected) == {"127.0.0.1"}


@pytest.mark.parametrize(
    "address",
    ["10.0.0.5", "169.254.169.254", "192.0.0.192", "168.63.129.16", "100.100.100.200", "fd00::5",
     "fe80::5%eth0", "::ffff:10.0.0.5", "64:ff9b::a00:5", "64:ff9b:1::a00:5", "2002:a00:5::1"],
)  # fmt: skip
def test_hostile_name_of_private_address_is_never_connected(server, connected, names, address):
    names["inner.example"] = [[address]]
    place = "http://inner.example/secret"
    server.answers["/to_inner"] = moved(place)
    found = statuses([place, f"{server.url}/to_inner", f"{server.url}/ok"])
    assert found == ["blocked_address", "blocked_address", "ok"]
    assert set(connected) == {"127.0.0.1"}


def test_hostile_name_that_answers_anew_is_judged_where_it_connects(connected, names, monkeypatch):
    monkeypatch.setattr(addresses, "NAME_S", 0.0)
    names["rebound.example"] = [["127.0.0.1"], ["10.0.0.5"]]
    with RawServer({}) as server:
        again = f"http://rebound.example:{server.port}/again"
        server.answers["/first"] = answer(
            b"", f"Location: {again}", "Connection: close", status="302 Found"
        )
        found = statuses([f"http://rebound.example:{server.port}/first"])
        assert server.paths == ["/first"]
    assert found == ["blocked_address"]
    assert connected == ["127.0.0.1"]


def test_hostile_address_with_a_zone_is_not_looked_up_as_a_name(connected, names):
    # the event loop asks the name server for what has a zone, after the address has been judged
    names["2606:4700::1%inner.example"] = [["10.0.0.5"]]
    url = "http://[2606:4700::1%25inner.example]/"
    assert statuses([url]) == ["blocked_address"]
    assert connected == []


PRIVATE = ("10.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "192.168.0.0/16", "100.64.0.0/10")


def spellings(address):
    """Return the ways in which a host of a url may spell an IPv4 address."""
    number, (a, b, c, d) = int(address), address.packed
    tail, last = number & 0xFFFFFF, number & 0xFFFF
    wide = str(address).translate({ord(str(digit)): 0xFF10 + digit for digit in range(10)})
    return [
        str(address), str(number), hex(number), f"0{number:o}", f"{a}.{tail}", f"{a}.{b}.{last}",
        f"0{a:o}.0{b:o}.0{c:o}.0{d:o}", f"0x{a:x}.0x{b:X}.{c}.{d}", f"0{a:o}.{hex(tail)}",
        f"{a:03d}.{b:03d}.{c:03d}.{d:03d}", f"{address}.", wide, f"someone@{address}",
        str(address).replace(".", "。"), "".join(f"%{ord(one):02x}" for one in str(address)),
        f"[::ffff:{address}]", f"[::ffff:{a:x}{b:02x}:{c:x}{d:02x}]", f"[64:ff9b::{address}]",
        f"[::{address}]", f"[::ffff:{address}%251]", f"[64:ff9b:1::{address}]",
    ]  # fmt: skip


@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.one_of([st.ip_addresses(network=network) for network in PRIVATE]))
def test_hostile_spelling_of_private_address_is_never_connected(connected, no_names, address):
    urls = [f"http://{host}/" for host in spellings(address)]
    found = statuses(urls, allow_loopback=False)
    assert set(found) <= {"blocked_address", "bad_url", "dns"}
    assert connected == []


def test_hostile_certificate_that_nobody_vouches_for_is_bad_tls(server, tmp_path):
    key, cert = certificate(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    with RawServer({"/ok": answer(PHOTO)}, context) as secret:
        assert statuses([f"{secret.url}/ok", f"{server.url}/ok"]) == ["bad_tls", "ok"]
        assert secret.paths == []


def test_hostile_server_that_never_shakes_hands_meets_the_deadline(server):
    with socket.create_server(("127.0.0.1", 0)) as mute:
        url = f"https://127.0.0.1:{mute.getsockname()[1]}/ok"
        assert statuses([url, f"{server.url}/ok"], timeout_s=1.5) == ["timeout", "ok"]


def test_hostile_domain_of_silent_name_servers_keeps_no_other_name_waiting(server, monkeypatch):
    real, released = socket.getaddrinfo, threading.Event()

    def ask(host, *arguments, **options):
        if host.endswith(".silent.example"):
            released.wait(60)
            raise socket.gaierror(socket.EAI_AGAIN, "nobody answered")
        return real(host, *arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", ask)
    urls = [f"http://{number}.silent.example/a" for number in range(200)]
    urls.append(f"http://localhost:{server.port}/ok")
    found = statuses(urls, in_flight=250, timeout_s=3.0)
    released.set()
    assert found == ["timeout"] * 200 + ["ok"]


def test_hostile_many_addresses_of_one_name_make_few_attempts(connected, names):
    names["many.example"] = [[f"93.184.216.{number}" for number in range(200)]]
    assert statuses(["http://many.example/a"]) == ["refused"]
    assert len(set(connected)) == addresses.ADDRESSES_TRIED


def test_hostile_packed_answer_that_is_a_picture_is_unpacked():
    with RawServer({"/ok": answer(gzip.compress(PHOTO), "Content-Encoding: gzip")}) as server:
        assert statuses([f"{server.url}/ok"]) == ["ok"]

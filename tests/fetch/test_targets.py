"""What a server is asked for: the url as it was given, directly and behind a redirect."""

import re
from collections import defaultdict
from urllib.parse import quote, unquote_to_bytes

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from namedmask.config import FetchConfig
from namedmask.fetch import addresses
from namedmask.fetch.stage import Fetch
from namedmask.fetch.targets import joined, request_url
from namedmask.metadata.urls import normalize_url
from tests import toys
from tests.raw_server import RawServer, answer, head

PHOTO = toys.jpeg(toys.disk((30, 30, 200), 1))


@pytest.fixture(autouse=True)
def fresh():
    yield
    addresses.resolved.clear()


def statuses(urls, **options):
    options = {"allow_loopback": True, "retries": 0, "timeout_s": 10.0, **options}
    table = pa.table({"url": urls, "status": ["ok"] * len(urls)})
    return Fetch(FetchConfig(**options))(table)["status"].to_pylist()


@pytest.fixture(scope="module")
def echo():
    """A server that gives a picture for every path and remembers what it was asked for."""
    with RawServer(defaultdict(lambda: answer(PHOTO))) as running:
        yield running


AS_GIVEN = (
    "/_next/image?url=https%3A%2F%2Fexample.org%2Fa%2Fb.jpg&w=640&q=75",
    "/unsafe/300x200/https%3A%2F%2Fexample.org%2Fa%20b.jpg", "/a%2Fb%2fc.jpg", "/%7Euser/a.jpg",
    "/a%28b%29%2C%c3%bc%C3%BC.jpg", "/a+b.jpg?c+d=e+f", "/a%2Bb?c=%2B%26%3D", "/a?X-Sig=A%2fb%3D",
    "/photo;v=1/a,b@2x.jpg", "/a!$&'()*+,;=:@b", "/a?b=c?d/e:f@g", "/a?b=%5B1%5D", "/a//b///c",
    "/a/./b/../c.jpg", "/..%2f..%2fa", "/a?", "/a?&", "/a?b=%00", "/%25", "/a%252Fb",
    "/-._~", "/a?b='c'", "/%E4%E9.jpg", "/a?b=%E4",
)  # fmt: skip

ESCAPED = {
    "/a b.jpg": "/a%20b.jpg", "/a?b c=d e": "/a?b%20c=d%20e", "/ü.jpg": "/%C3%BC.jpg",
    "/a?ü=é": "/a?%C3%BC=%C3%A9", "/100%.jpg": "/100%25.jpg", "/a%zz?b=%1": "/a%25zz?b=%251",
    "/a|b": "/a%7Cb", "/a[1]{2}": "/a%5B1%5D%7B2%7D", '/"<>^`': "/%22%3C%3E%5E%60",
    "/a\\b": "/a%5Cb", "/a?b=c|[d]": "/a?b=c%7C%5Bd%5D", "/写真/猫.jpg?色=黒": "/"
    + quote("写真/猫.jpg") + "?" + quote("色=黒", safe="="), "/😀": "/%F0%9F%98%80",
    "/a#b": "/a", "/a?b#c?d": "/a?b", "/a?#b": "/a?", "?b": "/?b", "": "/", "#a": "/",
    "/a\u00a0b": "/a%C2%A0b", "/a\x7fb\x01": "/a%7Fb%01", "/a\n\tb": "/ab",
}  # fmt: skip


def test_target_escapes_stay_and_what_must_be_escaped_is(echo):
    wanted = {path: path for path in AS_GIVEN} | ESCAPED
    for path, asked in wanted.items():
        echo.paths.clear()
        assert statuses([echo.url + path]) == ["ok"], path
        assert echo.paths == [asked]


LOCATIONS = {
    b"/ok/b%2Fc?d=%3A+e": "/ok/b%2Fc?d=%3A+e", b"/ok/a b.jpg": "/ok/a%20b.jpg",
    b"/ok/\xe9t\xe9.jpg?b=\xe4": "/ok/%E9t%E9.jpg?b=%E4", "/ok/é.jpg": "/ok/%C3%A9.jpg",
    b"ok.jpg": "/from/ok.jpg", b"../ok": "/ok", b"./ok/../b": "/from/b", b"../../../ok": "/ok",
    b"?b=c": "/from/here?b=c", b"/ok#top": "/ok", b"  /ok  ": "/ok", b"/ok?": "/ok?",
    b"/ok/[1]|2": "/ok/%5B1%5D%7C2", b"/ok\\b": "/ok%5Cb", b"/ok;a=b/../c": "/c",
    b"ok/": "/from/ok/", b".": "/from/", b"..": "/", b"/ok/x:y": "/ok/x:y", b"./x:y": "/from/x:y",
}  # fmt: skip


@pytest.mark.parametrize("location", LOCATIONS)
def test_target_of_a_location_is_what_it_says(location):
    line = location.encode() if isinstance(location, str) else location
    moved = head("Content-Length: 0", status="302 Found")[:-2] + b"Location: " + line + b"\r\n\r\n"
    answers = defaultdict(lambda: answer(PHOTO))

    def first_moved(talk):
        talk.say(moved if len(server.paths) == 1 else head(f"Content-Length: {len(PHOTO)}") + PHOTO)

    answers["/from"] = first_moved
    with RawServer(answers) as server:
        assert statuses([f"{server.url}/from/here?q#f"]) == ["ok"]
        assert server.paths[1:] == [LOCATIONS[location]]


@pytest.mark.parametrize("form", ["{url}/ok%2Fa?b=%3A", "//127.0.0.1:{port}/ok%2Fa?b=%3A"])
def test_target_of_an_absolute_location_keeps_its_escapes(echo, form):
    place = form.format(url=echo.url, port=echo.port)
    moved = answer(b"", f"Location: {place}", status="301 Moved")
    echo.paths.clear()
    with RawServer({"/": moved}) as server:
        assert statuses([server.url]) == ["ok"]
    assert echo.paths == ["/ok%2Fa?b=%3A"]


def test_target_with_user_and_password_sends_them_as_a_header_only():
    seen = []

    def ask(talk):
        seen.append(talk.request)
        answer(PHOTO)(talk)

    with RawServer({"/a": ask}) as server:
        assert statuses([f"http://me:p%40s@127.0.0.1:{server.port}/a"]) == ["ok"]
    assert b"Authorization: Basic bWU6cEBz" in seen[0]
    assert f"Host: 127.0.0.1:{server.port}\r\n".encode() in seen[0]
    assert seen[0].startswith(b"GET /a HTTP/1.1\r\n")


def test_target_on_an_ipv6_host_with_a_port():
    with RawServer({"/a": answer(PHOTO)}, host="::1") as server:
        assert statuses([f"http://[0:0::1]:{server.port}/a"]) == ["ok"]


COOKIE = {
    "k=v": "k=v", "k=v; Path=/": "k=v", 'k="a b"; HttpOnly': 'k="a b"',
    "k=a%2Fb==; Max-Age=9": "k=a%2Fb==",
}  # fmt: skip


@pytest.mark.parametrize("cookie", COOKIE)
def test_target_that_redirects_to_itself_until_its_cookie_comes_back(cookie):
    asked = []

    def loop(talk):
        asked.append(talk.request)
        if f"Cookie: {COOKIE[cookie]}\r\n".encode() in talk.request:
            answer(PHOTO)(talk)
        else:
            answer(b"", f"Set-Cookie: {cookie}", "Location: /loop", status="302 Found")(talk)

    with RawServer({"/loop": loop, "/ok": answer(PHOTO)}) as server:
        assert statuses([f"{server.url}/loop"]) == ["ok"]
        assert len(asked) == 2
        assert statuses([f"{server.url}/loop", f"{server.url}/loop"], per_host=1) == ["ok"] * 2
        assert sorted(b"Cookie:" in request for request in asked[2:]) == [False, False, True, True]


def test_target_cookie_goes_to_no_other_host_and_no_other_url():
    asked = []

    def ask(talk):
        asked.append(talk.request)
        answer(PHOTO)(talk)

    with RawServer({"/ok": ask}) as other:
        place = f"http://localhost:{other.port}/ok"
        moved = answer(b"", "Set-Cookie: k=v", f"Location: {place}", status="302 Found")
        with RawServer({"/from": moved, "/ok": ask}) as server:
            assert statuses([f"{server.url}/from", f"{server.url}/ok"], per_host=1) == ["ok"] * 2
    assert not any(b"Cookie" in request for request in asked)


@pytest.mark.parametrize(
    "url",
    ["", "a.jpg", "//h/a", "ftp://h/a", "http://", "http:///a", "http://h:x/", "http://h:99999/",
     "http://[::1", "http://a b/", "http://a\\@b/", "http://h\\x/", "http://%68/", "javascript:1",
     "file:///a", "http://[fe80::1%25eth0]/", "http://" + "a" * 254 + "/",
     "http://" + "ä." * 200_000 + "com/"],
)  # fmt: skip
def test_target_of_no_http_url_is_empty(url):
    assert request_url(url) == ""


PLAIN = re.compile(r"[A-Za-z0-9._~!$&'()*+,;=:@%/?-]*")


@settings(deadline=None, max_examples=400)
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=30), st.text(max_size=9))
def test_target_of_any_path_says_the_same_bytes(path, query):
    url = f"http://h/{path}x"
    asked = request_url(url)
    assert PLAIN.fullmatch(asked.removeprefix("http://h"))
    assert request_url(asked) == asked
    assert normalize_url(asked) == normalize_url(url).replace("|", "%7C")
    given_path = re.sub("[\t\r\n]", "", path.partition("#")[0].partition("?")[0])
    stray = re.sub("%(?![0-9A-Fa-f]{2})", "%25", given_path)
    if "#" not in path and "?" not in path:
        assert unquote_to_bytes(asked) == unquote_to_bytes(f"http://h/{stray}x")


@settings(deadline=None, max_examples=400)
@given(st.text() | st.text().map("http://h/".__add__) | st.binary().map(lambda raw: "http://h/"
       + raw.decode("utf-8", "surrogateescape")))  # fmt: skip
def test_target_of_any_text_never_raises(text):
    asked = request_url(text)
    assert asked.isascii()
    assert request_url(asked) == asked
    assert isinstance(joined("http://h/a?b", text), str)


def without_dots(path):
    """Return a path after the steps of RFC 3986, section 5.2.4, taken one by one."""
    done = ""
    while path:
        if path.startswith("/./") or path == "/.":
            path = "/" + path[3:]
        elif path.startswith("/../") or path == "/..":
            path, done = "/" + path[4:], done[: max(0, done.rfind("/"))]
        else:
            end = path.find("/", 1) if path.find("/", 1) > 0 else len(path)
            done, path = done + path[:end], path[end:]
    return done


SEGMENT = st.from_regex(r"[a-z;=-]{0,2}|\.{1,3}", fullmatch=True)


@settings(deadline=None, max_examples=400)
@given(st.lists(SEGMENT, min_size=1, max_size=6).map("/".join), st.booleans())
def test_target_of_a_relative_location_is_as_the_standard_says(path, rooted):
    place = f"/a/{path}" if rooted else f"b/{path}"
    whole = place if rooted else f"/d/e/{place}"
    assert joined("http://h/d/e/f?q", place) == f"http://h{without_dots(whole)}"

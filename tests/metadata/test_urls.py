"""Urls: one spelling each, for every spelling and any text; ids that never change."""

import re
import time

import idna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from namedmask.metadata.urls import normalize_url, sample_id


@pytest.mark.parametrize(
    ("url", "normal"),
    [
        ("HTTP://Example.COM", "http://example.com/"),
        (" https://example.com:443/a b.jpg\n", "https://example.com/a%20b.jpg"),
        ("http://example.com:80/x?q=1#top", "http://example.com/x?q=1"),
        ("http://example.com:8080/X", "http://example.com:8080/X"),
        ("http://bücher.example/ü.jpg", "http://xn--bcher-kva.example/%C3%BC.jpg"),
        ("http://example.com/100%.jpg", "http://example.com/100%25.jpg"),
        ("http://example.com/%c3%bc", "http://example.com/%C3%BC"),
        ("http://User:Pa@Example.com/", "http://User:Pa@example.com/"),
        ("http://[::1]:80/", "http://[::1]/"),
        ("http://[2001:DB8::0:1]/", "http://[2001:db8::1]/"),
        ("http://a_b.example.com/", "http://a_b.example.com/"),
        ("file:///data/a b.jpg", "file:///data/a%20b.jpg"),
    ],
)
def test_normalize_url_gives_one_spelling(url, normal):
    assert normalize_url(url) == normal


@pytest.mark.parametrize(
    "url",
    [
        "", "a.jpg", "www.example.com/a.jpg", "//example.com/a", "ftp://example.com/a",
        "data:image/png;base64,AAAA", "javascript:alert(1)", "http://", "http:///a", "http://a:b/",
        "http://a:99999/", "http://[::1", "http://[fe80::1%25eth0]/", "http://ex ample.com/",
        "http://exa<mple.com/", "http://./", "http://a\\b/", "file://server/share/a.jpg",
        "http://" + "ü" * 80 + ".com/",
    ],
)  # fmt: skip
def test_normalize_url_no_url_gives_empty(url):
    assert normalize_url(url) == ""


@settings(deadline=None)
@given(
    st.one_of(st.text(), st.text().map("http://".__add__), st.text().map("https://a.b/".__add__))
)
def test_normalize_url_any_text_never_raises_and_is_idempotent(text):
    normal = normalize_url(text)
    assert normal.isascii()
    assert normalize_url(normal) == normal
    assert len(sample_id(text)) == 20


@settings(deadline=None)
@given(
    st.sampled_from(["http", "HTTPS"]),
    st.from_regex(r"[a-zA-Z0-9]{1,9}(\.[a-zA-Z0-9ü]{1,9}){1,3}", fullmatch=True),
    st.integers(0, 65535),
    st.text(st.characters(exclude_characters="?#"), max_size=20),
    st.text(max_size=20),
)
def test_normalize_url_spellings_of_one_url_share_an_id(scheme, host, port, path, fragment):
    url = f"{scheme}://{host}:{port}/{path}"
    if not normalize_url(url):
        return
    assert normalize_url(normalize_url(url)) == normalize_url(url)
    other = f" {scheme.lower()}://{host.upper().replace('Ü', 'ü')}:{port}/{path}x#{fragment}"
    assert sample_id(other) == sample_id(url + "x")


PATHS = st.text(st.characters(exclude_characters="?#%\\", codec="utf-8"), max_size=12)
HOSTS = st.from_regex(r"[a-z][a-z0-9]{0,8}(\.[a-z]{2,5}){1,2}", fullmatch=True)


@settings(deadline=None)
@given(st.sampled_from(["http", "https"]), HOSTS, PATHS, st.data())
def test_normalize_url_other_spellings_of_a_url_are_the_same(scheme, host, path, data):
    def any_case(text):
        return "".join(data.draw(st.sampled_from([c.lower(), c.upper()])) for c in text)

    plain = f"{scheme}://{host}/{path.strip()}"
    port = {"http": ":80", "https": ":443"}[scheme]
    escaped = "".join(
        "".join(f"%{byte:02x}" for byte in c.encode()) if not c.isascii() else c
        for c in path.strip()
    )
    fragment = data.draw(st.sampled_from(["", "#top", "#", "#a?b"]))
    other = f"  {any_case(scheme)}://{any_case(host)}{port}/{any_case_escapes(escaped)}{fragment}\n"
    assert normalize_url(plain)
    assert normalize_url(other) == normalize_url(plain)
    assert sample_id(other) == sample_id(plain)


def any_case_escapes(text):
    return re.sub("%[0-9a-f]{2}", lambda found: found[0].upper(), text)


@settings(deadline=None)
@given(HOSTS, PATHS, PATHS)
def test_normalize_url_different_paths_stay_different(host, one, other):
    first, second = (f"http://{host}/{path}x" for path in (one, other))
    same = normalize_url(first) == normalize_url(second)
    assert same == (sample_id(first) == sample_id(second))
    if one.isascii() and other.isascii() and one.isprintable() and other.isprintable():
        assert same == (one == other)


OWNERS = [
    {"faß.de", "FAß.de", "FAẞ.DE", "xn--fa-hia.de"},
    {"fass.de", "FASS.de", "ｆａｓｓ.de", "faſs.de"},
    {"σίγμας.gr", "ΣΊΓΜΑς.gr"}, {"σίγμασ.gr", "ΣΊΓΜΑΣ.gr"},
    {"نامه\u200cای.com"}, {"نامهای.com"}, {"क्\u200dष.com"}, {"क्ष.com"},  # with and without a joiner
    {"bücher.example", "BÜCHER.example", "b\u0075\u0308cher.example", "bücher。example",
     "bücher．example", "bücher｡example", "xn--bcher-kva.example", "XN--BCHER-KVA.example"},
    {"bücher.example."}, {"bucher.example"},
    {"example.org", "EXAMPLE.org", "ｅｘａｍｐｌｅ．ｏｒｇ", "exam\u00adple.org"}, {"example.org."},
    {"istanbul.com", "ISTANBUL.com"}, {"i\u0307stanbul.com", "İstanbul.com"}, {"ıstanbul.com"},
    {"i❤.ws", "I❤.ws", "xn--i-7iq.ws"}, {"😀.ws"}, {"а.com"}, {"a.com"}, {"日本.jp"},
]  # fmt: skip
"""Hosts that browsers take for one, by UTS 46; two sets are two owners."""


def test_sample_id_is_one_for_each_owner_and_for_no_two():
    ids = [{sample_id(f"http://{host}/a.jpg") for host in hosts} for hosts in OWNERS]
    assert [len(of_owner) for of_owner in ids] == [1] * len(OWNERS)
    assert len(set.union(*ids)) == len(OWNERS)
    hosts = [normalize_url(f"http://{host}/") for owner in OWNERS for host in owner]
    assert all(re.fullmatch(r"http://[a-z0-9.-]+/", host) for host in hosts)


@pytest.mark.parametrize(
    "host", ["a\u200db.com", "a\u200cb.com", "ü..com", "-ü.com", "ü-.com", "\u0308a.com", "℀.com",
             "ü／x.com", "ü＠x.com", "ü＃x.com", "ä" * 64 + ".com", "\ufffd.com"],
)  # fmt: skip
def test_normalize_url_host_without_a_mapping_gives_empty(host):
    assert normalize_url(f"http://{host}/") == ""


LABELS = st.text(
    st.sampled_from("aßsſσςéeüÜİıΣ❤日あ")
    | st.characters(codec="utf-8", exclude_characters="@:/?#[]\\%"),
    min_size=1, max_size=6,
)  # fmt: skip


@settings(deadline=None, max_examples=1000)
@given(LABELS, LABELS)
def test_normalize_url_hosts_share_a_form_only_if_their_letters_map_to_the_same(one, other):
    forms = [normalize_url(f"http://{label}.example/") for label in (one, other)]
    mapped = []
    for label in (one, other):
        try:
            mapped.append(idna.uts46_remap(label.strip().lower(), False, False))
        except idna.IDNAError:
            mapped.append(None)
    if forms[0] and forms[0] == forms[1]:
        assert mapped[0] == mapped[1] or all(isinstance(m, str) and "xn--" in m for m in mapped)
    if all(forms) and mapped[0] == mapped[1]:
        assert forms[0] == forms[1]


def test_normalize_url_long_hosts_take_no_time():
    begun = time.perf_counter()
    assert normalize_url("http://" + "ä." * 200_000 + "com/") == ""
    assert normalize_url("http://" + "a" * 2_000_000 + "/") == ""
    assert time.perf_counter() - begun < 1


IDS = {
    "http://example.com/": "48caf8bc2eae80b6d393",
    "https://example.com/a%20b.jpg?x=1&y=2": "d60c6ededca50c7f75aa",
    "http://bücher.example/ü.jpg": "cd24f0151f50d93180dc",
    "http://example.com:8080/X": "06c34aff7b174bac1c57",
    "http://[2001:db8::1]/": "a547c0af579d551475d7",
    "file:///data/a b.jpg": "90d32e88f21d1aa26874",
    "http://User:Pa@example.com/a|b": "8c4d3f29fbe5dcc2719c",
    " HTTP://EXAMPLE.com:80/%c3%bc#x": "78ab8ade6ce5b12c67c1",
    "no url at all": "593e75a5f2af5d0be078",
}
"""Sample ids as they have been from the first version on; stores and vetoes speak of them."""


@pytest.mark.parametrize(("url", "expected"), IDS.items())
def test_sample_id_is_the_same_on_every_machine_and_for_good(url, expected):
    assert sample_id(url) == expected


def test_sample_id_of_another_spelling_is_the_same():
    assert sample_id("http://Example.com:80#x") == sample_id("http://example.com/")

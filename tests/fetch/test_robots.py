"""What a robots.txt asks of one program: which urls, for what use, and how often."""

import re
import time
from itertools import pairwise

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from namedmask.config import FetchConfig
from namedmask.fetch import addresses, download
from namedmask.fetch.robots import may_fetch, rules_for, site_rules
from namedmask.fetch.stage import Fetch
from tests import toys
from tests.raw_server import RawServer, answer

AGENT = "NamedMask/0.1 (+https://example.org)"
PHOTO = toys.jpeg(toys.disk((30, 30, 200), 1))


@pytest.fixture(autouse=True)
def fresh():
    yield
    addresses.resolved.clear()
    download.robots_texts.clear()


def statuses(urls, **options):
    options = {"allow_loopback": True, "retries": 0, "robots_txt": True, **options}
    table = pa.table({"url": urls, "status": ["ok"] * len(urls)})
    return Fetch(FetchConfig(**options))(table)["status"].to_pylist()


@pytest.mark.parametrize(
    ("rules", "path", "allowed"),
    [
        ("", "/a.jpg", True),
        ("Disallow: /", "/a.jpg", False),
        ("Disallow:", "/a.jpg", True),
        ("Disallow: /private/", "/a.jpg", True),
        ("Disallow: /private/", "/private/a.jpg", False),
        ("Disallow: /private", "/privateer.jpg", False),
        ("Disallow: /*.gif$", "/a/b.gif", False),
        ("Disallow: /*.gif$", "/a/b.gif?c", True),
        ("Disallow: /*.gif", "/a/b.gif?c", False),
        ("Disallow: /*/thumbs/", "/a/b/thumbs/c.jpg", False),
        ("Disallow: *.gif", "/a.gif", False),
        ("Disallow: /*?*size=", "/a.jpg?b=1&size=2", False),
        ("Disallow: /a$", "/a", False),
        ("Disallow: /a$", "/ab", True),
        ("Disallow: /\nAllow: /photos/", "/photos/a.jpg", True),
        ("Allow: /photos/\nDisallow: /", "/photos/a.jpg", True),
        ("Allow: /\nDisallow: /photos/", "/photos/a.jpg", False),
        ("Allow: /photos/*.jpg\nDisallow: /photos/", "/photos/a.jpg", True),
        ("Allow: /photos\nDisallow: /*.jpg", "/photos.jpg", True),
        ("Allow: /a\nDisallow: /a", "/a.jpg", True),
        ("Disallow: /%C3%A9t%C3%A9", "/%c3%a9t%C3%A9.jpg", False),
        ("Disallow: /été", "/%C3%A9t%C3%A9.jpg", False),
        ("Disallow: /a%2fb", "/a%2Fb", False),
        ("Disallow: /a/b", "/a%2Fb", True),
        ("Disallow: /%7Euser/", "/~user/a.jpg", False),
        ("Disallow : /a", "/a.jpg", False),
        ("disallow:/a # not here", "/a.jpg", False),
        ("Diss\x61llow: /a", "/a.jpg", False),
        ("Disallow: /a\nUnknown: b\n\nDisallow: /c", "/c.jpg", False),
    ],
)
def test_robots_rule_that_is_longest_counts_with_wildcards(rules, path, allowed):
    text = f"User-agent: *\n{rules}"
    for end in ("\n", "\r\n", "\r"):
        assert may_fetch(text.replace("\n", end).encode(), AGENT, path) is allowed


OURS = "User-agent: NamedMask"
NO = "Disallow: /"


@pytest.mark.parametrize(
    ("text", "allowed"),
    [
        (f"{OURS}\n{NO}", False), (f"user-AGENT: namedmask\n{NO}", False),
        (f"{OURS}/9.0\n{NO}", False), (f"User-agent: otherbot\n{NO}", True),
        (f"User-agent: Named\n{NO}", True), (f"User-agent: mask\n{NO}", True),
        (f"User-agent: NamedMaskPlus\n{NO}", True), (f"{OURS}*\n{NO}", False),
        (f"User-agent: *\n{NO}\n\n{OURS}\nAllow: /", True),
        (f"User-agent: *\n{NO}\n\n{OURS}\nDisallow:", True),
        (f"User-agent: *\n{NO}\n\n{OURS}", True),
        (f"{OURS}\n{NO}\n\nUser-agent: *\nAllow: /", False),
        (f"{OURS}\nUser-agent: otherbot\n{NO}", False),
        (f"User-agent: otherbot\nSitemap: https://a/b\n{OURS}\n{NO}", False),
        (f"User-agent: otherbot\nUnknown: x\n{OURS}\n{NO}", False),
        (f"{OURS}\nAllow: /\nUser-agent: otherbot\n{NO}", True),
        (f"{OURS}\nDisallow: /b\n\nUser-agent: x\nAllow: /\n\n{OURS}\nDisallow: /a", False),
        (f"{NO}\n{OURS}\nAllow: /", True), (f"\ufeff{OURS}\r\n{NO}", False),
        (f"  {OURS}  # us\n  {NO}  # all", False), (f"User agent: NamedMask\n{NO}", False),
        (f"User-agent: NamedMask, otherbot\n{NO}", False),
        ("<html>not found</html>", True), ("\0\x01\x02" * 99, True),
    ],
)  # fmt: skip
def test_robots_group_is_that_of_our_product_token(text, allowed):
    assert may_fetch(text.encode(), AGENT, "/a.jpg") is allowed


@pytest.mark.parametrize(
    ("user_agent", "name"),
    [("MyBot/1.0", "mybot"), ("My-Bot_2 (+https://x.org/a)", "my-bot_2"), ("mybot", "mybot"),
     ("Mozilla/5.0 (compatible; MyBot/1.0; +https://x.org)", "mybot")],
)  # fmt: skip
def test_robots_name_of_a_user_agent_is_its_product_token(user_agent, name):
    text = f"User-agent: {name}\n{NO}".encode()
    assert not may_fetch(text, user_agent, "/a")
    assert may_fetch(b"User-agent: other\n" + NO.encode(), user_agent, "/a")


SIGNAL, USAGE, TDM = "opted_out_content_signal", "opted_out_content_usage", "opted_out_tdm"
EVERYBODY = "User-agent: *\nAllow: /\n"


@pytest.mark.parametrize(
    ("text", "status"),
    [
        (f"{EVERYBODY}Content-Signal: search=yes, ai-train=no", SIGNAL),
        (f"{EVERYBODY}content-signal:ai-train=NO,search=yes", SIGNAL),
        (f"User-Agent: *\nContent-signal: search=yes,ai-train=no\nAllow: /\n\nUser-agent: b\n{NO}",
         SIGNAL),
        (f"{EVERYBODY}Content-Signal: search=yes, ai-train=yes", ""),
        (f"{EVERYBODY}Content-Signal: search=no, ai-input=no", ""),
        (f"{EVERYBODY}Content-Signal: search=yes\nContent-Signal: ai-train=no", SIGNAL),
        (f"{EVERYBODY}Content-Signal: /a ai-train=no", SIGNAL),
        (f"{EVERYBODY}Content-Signal: /b ai-train=no", ""),
        (f"{EVERYBODY}Content-Usage: train-ai=n", USAGE),
        (f"{EVERYBODY}Content-Usage: search=y, train-ai=n;x=1", USAGE),
        (f"{EVERYBODY}Content-Usage: train-ai=y", ""),
        (f"{EVERYBODY}Content-Usage: search=n", ""),
        (f"{EVERYBODY}Content-Usage: train-ai=n\nContent-Usage: /a train-ai=y", ""),
        (f"{EVERYBODY}Content-Usage: train-ai=y\nContent-Usage: /a\ttrain-ai=n", USAGE),
        (f"{EVERYBODY}Content-Usage: /a train-ai=y\nContent-Usage: /a train-ai=n", USAGE),
        (f"{EVERYBODY}Content-Usage: train-ai=n, train-ai=y", ""),
        (f"{EVERYBODY}TDM-Reservation: 1", TDM), (f"{EVERYBODY}tdm-reservation: 0", ""),
        (f"User-agent: other\nContent-Signal: ai-train=no\n\n{EVERYBODY}", ""),
        (f"{EVERYBODY}Content-Signal: ai-train=no\n\n{OURS}\nAllow: /", ""),
        (f"{OURS}\nContent-Usage: train-ai=n\n\n{EVERYBODY}", USAGE),
        (f"User-agent: *\n{NO}\nContent-Signal: ai-train=no", "robots_txt"),
        ("Content-Signal: ai-train=no", ""),
    ],
)  # fmt: skip
def test_robots_signals_about_learning_have_a_status_each(text, status):
    rules = site_rules(text.encode(), AGENT)
    assert rules.status_of("/a.jpg", True) == status
    assert rules.status_of("/a.jpg", False) == ("robots_txt" if status == "robots_txt" else "")


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("Crawl-delay: 2.5", 2.5), ("crawl-delay:10", 10), ("Crawl-delay: soon", 0),
     ("Crawl-delay: -1", 0), ("Crawl-delay: nan", 0), ("Crawl-delay: inf", 0),
     ("Request-rate: 1/5", 5), ("Request-rate: 10/1m\nCrawl-delay: 2", 6), (NO, 0)],
)  # fmt: skip
def test_robots_delay_is_that_of_our_group(text, seconds):
    text = f"User-agent: other\nCrawl-delay: 99\n\nUser-agent: *\n{text}"
    assert site_rules(text.encode(), AGENT).delay_s == seconds


def served(text, **more):
    return RawServer({"/robots.txt": answer(text.encode()), "/a": answer(PHOTO), **more})


@pytest.mark.parametrize(
    ("text", "status"),
    [(f"User-agent: *\n{NO}", "robots_txt"), ("User-agent: *\nContent-Signal: ai-train=no", SIGNAL),
     ("User-agent: *\nContent-Usage: train-ai=n", USAGE),
     ("User-agent: *\nTDM-Reservation: 1", TDM), ("User-agent: *\nDisallow: /*.gif$", "ok")],
)  # fmt: skip
def test_robots_txt_of_a_server_decides_before_the_image_is_asked_for(text, status):
    with served(text) as server:
        assert statuses([f"{server.url}/a"]) == [status]
        assert ("/a" in server.paths) is (status == "ok")
        found = statuses([f"{server.url}/a"], honor_opt_out=False)
        assert found == ["robots_txt" if status == "robots_txt" else "ok"]
        assert statuses([f"{server.url}/a"], robots_txt=False) == ["ok"]


def test_robots_delay_separates_the_requests_of_one_host():
    times = []

    def timed(talk):
        times.append(time.monotonic())
        answer(PHOTO)(talk)

    with served("User-agent: *\nCrawl-delay: 0.2", **{"/b": timed}) as server:
        urls = [f"{server.url}/b/{number}" for number in range(5)]
        assert statuses(urls) == ["ok"] * 5
    assert all(later - earlier >= 0.19 for earlier, later in pairwise(times))


def test_robots_delay_beyond_our_patience_leaves_the_rest_for_later():
    with served("User-agent: *\nCrawl-delay: 0.2") as server:
        begun = time.monotonic()
        urls = [f"{server.url}/a/{number}" for number in range(50)]
        found = statuses(urls, max_pause_s=0.5, retries=2)
        assert time.monotonic() - begun < 6
        assert sorted(set(found)) == ["crawl_delay", "ok"]
        assert 2 <= found.count("ok") <= 4
        assert len(server.paths) == found.count("ok") + 1
    with served("User-agent: *\nCrawl-delay: 86400") as server:
        assert sorted(statuses([f"{server.url}/a"] * 3)) == ["crawl_delay"] * 2 + ["ok"]


def test_robots_txt_behind_too_many_redirects_counts_as_none():
    loop = answer(b"", "Location: /robots.txt", status="302 Found")
    with RawServer({"/robots.txt": loop, "/a": answer(PHOTO)}) as server:
        assert statuses([f"{server.url}/a"]) == ["ok"]


@pytest.mark.parametrize("url", ["http://a%5Bb@{}/a", "http://{}/a%5B?b=[", "http://{}//[x"])
def test_robots_txt_is_asked_for_any_url_without_a_crash(url):
    with served(f"User-agent: *\n{NO}") as server:
        assert statuses([url.format(f"127.0.0.1:{server.port}")]) == ["robots_txt"]


def test_robots_txt_of_many_rules_takes_little_time():
    lines = [f"Disallow: /{number:x}*b$" for number in range(25_000)]
    text = "\n".join(["User-agent: *", *lines])[: 500 * 1024].encode()
    begun = time.perf_counter()
    site_rules.cache_clear()
    for number in range(20):
        assert may_fetch(text, AGENT, f"/zz{number}.jpg")
    assert time.perf_counter() - begun < 5


PATH = st.text("ab/", max_size=4).map("/".__add__)
PATTERN = st.text("ab/*", max_size=4).map("/".__add__) | PATH.map(lambda path: f"{path}$")
RULES = st.lists(st.tuples(st.sampled_from(["allow", "disallow"]), PATTERN), max_size=5)


def reference(rules, path):
    """Return whether a path may be fetched, by the letter of RFC 9309, section 2.2.2."""
    found = []
    for kind, pattern in rules:
        body = re.escape(pattern).replace(r"\*", ".*")
        expression = body.removesuffix(r"\$") + "$" if pattern.endswith("$") else body
        if re.match(expression, path):
            found.append((len(pattern), kind == "allow"))
    return max(found)[1] if found else True


@settings(deadline=None, max_examples=600)
@given(RULES, PATH)
def test_robots_of_any_rules_are_read_as_the_standard_says(rules, path):
    text = "\n".join(["User-agent: *", *(f"{kind}: {pattern}" for kind, pattern in rules)])
    assert may_fetch(text.encode(), AGENT, path) is reference(rules, path)


@settings(deadline=None, max_examples=300)
@given(st.lists(st.sampled_from([OURS, "User-agent: *", "User-agent: b", NO, "Allow: /a", "x", ""]))
       .map("\n".join) | st.text())  # fmt: skip
def test_robots_of_any_text_never_raise_and_take_rules_of_one_name_only(text):
    found = rules_for(text, "namedmask")
    if OURS in text.splitlines():
        assert found == rules_for(text.replace("User-agent: *", "User-agent: c"), "namedmask")
    assert site_rules(text.encode("utf-8", "replace"), AGENT).delay_s >= 0

"""One url to its bytes: what is asked first, how often, and by which address."""

import resource
import socket
import subprocess
import sys
import time

import pyarrow as pa
import pytest

from namedmask.config import FetchConfig
from namedmask.fetch import addresses, download
from namedmask.fetch import stage as fetch_module
from namedmask.fetch.stage import Fetch
from tests import toys
from tests.raw_server import RawServer, answer

PHOTO = toys.jpeg(toys.disk((30, 30, 200), 1))
OK = answer(PHOTO)


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    monkeypatch.setattr(fetch_module, "BACKOFF_S", 0.01)
    yield
    addresses.resolved.clear()
    download.robots_texts.clear()


def statuses(urls, **options):
    options = {"allow_loopback": True, "retries": 0, "robots_txt": True, **options}
    table = pa.table({"url": urls, "status": ["ok"] * len(urls)})
    return Fetch(FetchConfig(**options))(table)["status"].to_pylist()


def robots(text, status="200 OK"):
    return answer(text.encode(), "Content-Type: text/plain", status=status)


def test_download_keeps_to_robots_txt_and_asks_for_it_once():
    rules = robots("User-agent: *\nDisallow: /private")
    with RawServer({"/robots.txt": rules, "/ok": OK, "/private": OK}) as server:
        urls = [f"{server.url}/ok/{number}" for number in range(20)] + [f"{server.url}/private/a"]
        assert statuses(urls, per_host=1) == ["ok"] * 20 + ["robots_txt"]
        assert statuses(urls[-2:]) == ["ok", "robots_txt"]
        assert server.paths.count("/robots.txt") == 1
        assert "/private/a" not in server.paths
        assert statuses(urls[-1:], robots_txt=False) == ["ok"]


def test_download_asks_robots_txt_of_where_a_redirect_leads():
    with RawServer({"/robots.txt": robots("User-agent: *\nDisallow: /"), "/ok": OK}) as inside:
        there = answer(b"", f"Location: {inside.url}/ok", status="302 Found")
        with RawServer({"/robots.txt": robots(""), "/there": there}) as server:
            assert statuses([f"{server.url}/there"]) == ["robots_txt"]
        assert inside.paths == ["/robots.txt"]


@pytest.mark.parametrize(
    ("status", "word"),
    [("404 Not Found", "ok"), ("403 Forbidden", "ok"), ("500 Error", "http_500"),
     ("429 Too Many", "http_429")],
)  # fmt: skip
def test_download_site_without_robots_txt_is_open_and_one_in_trouble_is_not(status, word):
    with RawServer({"/robots.txt": robots("no", status), "/ok": OK}) as server:
        assert statuses([f"{server.url}/ok/{number}" for number in range(3)]) == [word] * 3
        assert (server.paths.count("/ok/0") == 1) is (word == "ok")


def test_download_robots_txt_without_end_is_read_up_to_its_bound():
    def endless(talk):
        talk.say(b"HTTP/1.1 200 OK\r\n\r\nUser-agent: *\nDisallow: /private\n")
        talk.for_ever(b"# nothing\n" * 1000)

    with RawServer({"/robots.txt": endless, "/ok": OK, "/private": OK}) as server:
        assert statuses([f"{server.url}/ok", f"{server.url}/private"]) == ["ok", "robots_txt"]


def test_download_robots_txt_that_leads_inside_is_not_followed():
    there = answer(b"", "Location: http://169.254.169.254/", status="302 Found")
    with RawServer({"/robots.txt": there, "/ok": OK}) as server:
        assert statuses([f"{server.url}/ok"]) == ["blocked_address"]


@pytest.fixture
def names(monkeypatch):
    """What each name answers; a name that is not in it does not exist."""
    known = {}
    asked = []

    def ask(host, port, *_, **__):
        asked.append(host)
        found = known.get(host, socket.gaierror(socket.EAI_NONAME, "no such name"))
        if isinstance(found, OSError):
            raise found
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (one, port)) for one in found]

    monkeypatch.setattr(socket, "getaddrinfo", ask)
    known["asked"] = asked
    return known


def test_download_next_address_is_tried_when_one_refuses(names):
    names["two.example"] = ["127.0.0.2", "127.0.0.1"]
    with RawServer({"/ok": OK}) as server:
        assert statuses([f"http://two.example:{server.port}/ok"], robots_txt=False) == ["ok"]


def test_download_next_address_is_tried_when_one_may_not_be_connected_to(names):
    names["two.example"] = ["10.0.0.5", "127.0.0.1"]
    with RawServer({"/ok": OK}) as server:
        assert statuses([f"http://two.example:{server.port}/ok"], robots_txt=False) == ["ok"]


def test_download_next_address_is_tried_when_one_is_silent(names):
    names["two.example"] = ["127.0.0.2", "127.0.0.1"]
    with RawServer({"/ok": OK}) as server, socket.socket() as deaf:
        # a full backlog: the system drops what knocks, as a wall on the way would
        deaf.bind(("127.0.0.2", server.port))
        deaf.listen(0)
        knocking = [socket.socket() for _ in range(8)]
        for one in knocking:
            one.setblocking(False)
            one.connect_ex(("127.0.0.2", server.port))
        time.sleep(0.1)
        found = statuses([f"http://two.example:{server.port}/ok"], robots_txt=False)
        for one in knocking:
            one.close()
    assert found == ["ok"]


def test_download_names_are_asked_once_a_process_also_those_that_do_not_exist(names):
    names["here.example"] = ["127.0.0.1"]
    with RawServer({"/ok": OK}) as server:
        urls = [f"http://{name}.example:{server.port}/ok" for name in ("here", "gone")] * 5
        for _ in range(3):
            assert statuses(urls, robots_txt=False) == ["ok", "dns"] * 5
    assert sorted(names["asked"]) == ["gone.example", "here.example"]


@pytest.mark.parametrize("robots_txt", [False, True])
def test_download_url_that_no_library_expects_has_its_reason(names, robots_txt):
    urls = {"http://xn--a/b": "dns", "http://[]&9@": "bad_url", "http://[_::]//": "bad_url",
            "http://a:b:c/": "bad_url"}  # fmt: skip
    assert statuses(list(urls), robots_txt=robots_txt) == list(urls.values())


def test_download_name_server_that_fails_is_asked_again(names, monkeypatch):
    monkeypatch.setattr(addresses, "FAILED_S", 0.0)
    names["late.example"] = socket.gaierror(socket.EAI_AGAIN, "try later")
    assert statuses(["http://late.example/ok"] * 5, robots_txt=False) == ["dns_failed"] * 5
    with RawServer({"/ok": OK}) as server:
        names["late.example"] = ["127.0.0.1"]
        assert statuses([f"http://late.example:{server.port}/ok"], robots_txt=False) == ["ok"]


def test_download_most_names_without_address_is_said_aloud(names, caplog):
    urls = [f"http://gone{number}.example/a" for number in range(30)]
    assert set(statuses(urls, robots_txt=False)) == {"dns"}
    assert "30 of 30 names have no address" in caplog.text
    caplog.clear()
    for number in range(30):
        names[f"here{number}.example"] = ["10.0.0.1"]
    urls = [f"http://here{number}.example/a" for number in range(30)]
    urls += [f"http://lost{number}.example/a" for number in range(25)]
    statuses(urls, robots_txt=False)
    assert "no address" not in caplog.text


CROWD = """
import resource, sys
import pyarrow as pa
from namedmask.config import FetchConfig
from namedmask.fetch import Fetch
resource.setrlimit(resource.RLIMIT_NOFILE, (int(sys.argv[2]), int(sys.argv[3])))
count = int(sys.argv[4])
config = FetchConfig(allow_loopback=True, retries=0, in_flight=count, per_host=count)
urls = [f"{sys.argv[1]}/slow/{number}" for number in range(count)]
table = Fetch(config)(pa.table({"url": urls, "status": ["ok"] * count}))
print(set(table["status"].to_pylist()))
"""


def crowd(url, soft, hard, count):
    command = [sys.executable, "-c", CROWD, url, *map(str, (soft, hard, count))]
    return subprocess.run(command, capture_output=True, text=True)


def test_download_more_in_flight_than_open_files_makes_room_or_says_so():
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    assert hard == resource.RLIM_INFINITY or hard >= 1024, "this machine is too small for the test"

    def slow(talk):
        talk.wait(1)
        talk.say(b"HTTP/1.1 404 Gone\r\nContent-Length: 0\r\n\r\n")

    with RawServer({"/slow": slow}) as server:
        assert crowd(server.url, 64, 1024, 300).stdout.strip() == "{'http_404'}"
    refused = crowd("http://127.0.0.1:9", 64, 300, 300)
    assert "fetch.in_flight = 300 needs 556 open files; this process may have 300" in refused.stderr

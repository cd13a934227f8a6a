"""Images through a proxy: when asked for, said otherwise, and not into the network behind it."""

import logging
import os
import socket
import ssl
import subprocess
import sys

import pyarrow as pa
import pytest
from yarl import URL

from namedmask.config import Config, FetchConfig
from namedmask.errors import ConfigError
from namedmask.fetch import addresses, proxies
from namedmask.fetch.proxies import Proxies, unused_proxy
from namedmask.fetch.stage import Fetch
from namedmask.verbs.plan import plan_of
from tests import toys
from tests.proxy_server import ProxyServer
from tests.raw_server import RawServer, answer, certificate

PHOTO = toys.jpeg(toys.disk((30, 30, 200), 1))
VARIABLES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    proxies.warn.cache_clear()
    yield
    addresses.resolved.clear()


@pytest.fixture
def names(monkeypatch):
    """A machine whose name server knows these names only."""
    known = {}
    real = socket.getaddrinfo

    def ask(host, port, family=0, kind=0, proto=0, flags=0):
        if flags & socket.AI_NUMERICHOST or host in ("127.0.0.1", "localhost"):
            return real(host, port, family, kind, proto, flags)
        if host not in known:
            raise socket.gaierror(socket.EAI_AGAIN, "no name server")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (one, 0)) for one in known[host]]

    monkeypatch.setattr(socket, "getaddrinfo", ask)
    return known


@pytest.fixture
def web():
    """A server that only the proxy can reach, as far as this machine knows, and the proxy."""
    there = answer(b"", "Location: http://inner.example/secret", status="302 Found")
    answers = {"/a": answer(PHOTO), "/secret": answer(PHOTO), "/to_inner": there,
               "/robots.txt": answer(b"User-agent: *\nDisallow: /private")}  # fmt: skip
    with RawServer(answers) as server:
        hosts = dict.fromkeys(("web.example", "inner.example", "10.0.0.5"), server.port)
        with ProxyServer(hosts) as proxy:
            yield server, proxy


def statuses(urls, **options):
    options = {"retries": 0, "timeout_s": 5.0, **options}
    table = pa.table({"url": urls, "status": ["ok"] * len(urls)})
    return Fetch(FetchConfig(**options))(table)["status"].to_pylist()


def test_proxy_of_the_config_is_asked_for_images_with_the_whole_url(names, web):
    _, proxy = web
    urls = ["http://web.example/a", "http://web.example/a/?b=%2F%3A"]
    assert statuses(urls, proxy=proxy.url) == ["ok", "ok"]
    assert sorted(proxy.asked) == [f"GET {url}" for url in urls]
    assert statuses(["http://web.example/a"]) == ["dns_failed"]


@pytest.mark.parametrize("name", ["http_proxy", "all_proxy"])
def test_proxy_of_the_environment_is_asked_only_if_the_config_says_so(
    names, web, monkeypatch, caplog, name
):
    _, proxy = web
    monkeypatch.setenv(name, proxy.url)
    assert statuses(["http://web.example/a"], proxy="environment") == ["ok"]
    assert "proxy" not in caplog.text
    assert statuses(["http://web.example/a"]) == ["dns_failed"]
    assert len(proxy.asked) == 1


def test_proxy_of_the_environment_without_a_config_is_said_once(names, monkeypatch, caplog):
    monkeypatch.setenv("HTTP_PROXY", "http://me:secret@127.0.0.1:9")
    for _ in range(3):
        statuses(["http://web.example/a"])
    said = [record for record in caplog.records if "has a proxy" in record.message]
    assert len(said) == 1
    assert said[0].levelno == logging.WARNING
    assert 'Set fetch.proxy = "environment"' in said[0].message
    assert "secret" not in caplog.text
    assert unused_proxy(FetchConfig(proxy="environment")) == ""
    assert unused_proxy(FetchConfig(allow_loopback=True)) == ""


def test_proxy_is_not_asked_for_the_hosts_of_no_proxy(names, web, monkeypatch):
    server, proxy = web
    monkeypatch.setenv("no_proxy", "web.example, .other.example")
    names["web.example"] = ["127.0.0.1"]
    url = f"http://web.example:{server.port}/a"
    assert statuses([url], proxy=proxy.url, allow_loopback=True) == ["ok"]
    assert statuses([url], proxy=proxy.url) == ["blocked_address"], "the direct way is checked"
    assert proxy.asked == []
    assert Proxies("http://p:1").of(URL("http://x.other.example/")) is None
    assert Proxies("http://p:1").of(URL("http://third.example/")) == URL("http://p:1")


INNER = [
    "127.0.0.1", "10.0.0.5", "127.1", "2130706433", "0x7f.1", "0177.0.0.1", "169.254.169.254",
    "[::1]", "[::ffff:10.0.0.5]", "[64:ff9b::a00:5]", "[fd00::5]", "0.0.0.0", "１０.0.0.5",
    "localhost", "intranet", "metadata.google.internal", "printer.local", "nas.home.arpa", "x.lan.",
    "inner.example",
]  # fmt: skip


@pytest.mark.parametrize("host", INNER)
def test_proxy_is_not_asked_for_a_host_that_is_known_to_be_inside(names, web, host):
    _, proxy = web
    names["inner.example"] = ["93.184.216.34", "10.0.0.5"]  # nobody knows which the proxy takes
    assert statuses([f"http://{host}/secret"], proxy=proxy.url) == ["blocked_address"]
    assert proxy.asked == []


def test_proxy_redirect_into_the_network_is_not_followed(names, web):
    _, proxy = web
    names["inner.example"] = ["10.0.0.5"]
    assert statuses(["http://web.example/to_inner"], proxy=proxy.url) == ["blocked_address"]
    assert proxy.asked == ["GET http://web.example/to_inner"]


def test_proxy_is_asked_for_robots_txt_as_well(names, web):
    _, proxy = web
    urls = ["http://web.example/a", "http://web.example/private"]
    assert statuses(urls, proxy=proxy.url, robots_txt=True) == ["ok", "robots_txt"]
    assert proxy.asked[0] == "GET http://web.example/robots.txt"


TUNNEL = """
import sys
import pyarrow as pa
from namedmask.config import FetchConfig
from namedmask.fetch import Fetch
table = pa.table({"url": ["https://web.example/a"], "status": ["ok"]})
print(Fetch(FetchConfig(proxy=sys.argv[1], retries=0))(table)["status"].to_pylist()[0])
"""


@pytest.mark.parametrize("trusted", [True, False])
def test_proxy_tunnels_https_and_the_certificate_is_still_checked(tmp_path, trusted):
    key, cert = certificate(tmp_path, "web.example")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    # The trusted certificates are loaded when the HTTP library is imported.
    env = os.environ | ({"SSL_CERT_FILE": str(cert)} if trusted else {})
    with (
        RawServer({"/a": answer(PHOTO)}, context) as server,
        ProxyServer({"web.example": server.port}) as proxy,
    ):
        command = [sys.executable, "-c", TUNNEL, proxy.url]
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=env)
    assert done.stdout.strip() == ("ok" if trusted else "bad_tls")
    assert proxy.asked == ["CONNECT web.example:443"]
    assert server.paths == (["/a"] if trusted else [])


def test_proxy_password_reaches_the_proxy_and_no_log(names, web, caplog):
    _, proxy = web
    url = proxy.url.replace("//", "//me:p%40s@")
    with caplog.at_level(logging.DEBUG):
        urls = ["http://web.example/a", "https://no.example/a"]
        assert statuses(urls, proxy=url) == ["ok", "proxy_failed"]
    assert set(proxy.authorizations) == {"Proxy-Authorization: Basic bWU6cEBz"}
    assert "p%40s" not in caplog.text and "p@s" not in caplog.text


@pytest.mark.parametrize("url", ["http://web.example/a", "https://web.example/a"])
def test_proxy_that_is_down_or_refuses_is_not_the_fault_of_the_url(names, url):
    with socket.create_server(("127.0.0.1", 0)) as gone:
        port = gone.getsockname()[1]
    assert statuses([url], proxy=f"http://127.0.0.1:{port}") == ["proxy_failed"]
    with ProxyServer({}, "503 Too Busy") as proxy:
        found = statuses([url], proxy=proxy.url)
    assert found == (["proxy_failed"] if url.startswith("https") else ["http_503"])
    with ProxyServer({}, "407 Who Are You") as proxy:
        assert statuses([url], proxy=proxy.url) == ["proxy_failed"]


def test_proxy_machine_without_a_name_server_gets_no_warning_about_it(names, web, caplog):
    _, proxy = web
    urls = [f"http://gone{number}.example/a" for number in range(30)]
    assert set(statuses(urls, proxy=proxy.url)) == {"http_502"}
    assert "name server" not in caplog.text


@pytest.mark.parametrize(
    "value", ["socks5://127.0.0.1:1080", "127.0.0.1:3128", "http://", "yes", "http://a b:1"]
)
def test_proxy_that_is_none_is_refused_by_the_config(value):
    with pytest.raises(ConfigError, match=r"fetch\.proxy"):
        Config.of({"run": {"out": "x"}, "fetch": {"proxy": value}})


@pytest.mark.parametrize(
    ("value", "shown"),
    [("socks5://me:secret@h:1080", "socks5://h"), ("http://me:secret@h:x", "a malformed url"),
     ("http://[", "a malformed url")],
)  # fmt: skip
def test_proxy_of_the_environment_that_is_none_is_one_line_without_its_password(
    monkeypatch, value, shown
):
    monkeypatch.setenv("https_proxy", value)
    with pytest.raises(ConfigError) as refused:
        statuses(["http://web.example/a"], proxy="environment")
    assert shown in str(refused.value)
    assert "secret" not in str(refused.value)


def test_proxy_without_a_scheme_in_the_environment_is_http(monkeypatch):
    monkeypatch.setenv("http_proxy", "proxy.example:3128")
    found = Proxies("environment")
    assert found.of(URL("http://a.example/")) == URL("http://proxy.example:3128")
    assert found.of(URL("https://a.example/")) is None
    assert not Proxies("")


def test_proxy_that_is_not_used_is_a_note_of_the_plan(tmp_path, monkeypatch):
    tree = {"run": {"out": str(tmp_path / "out")}, "categories": {"names": ["a cat"]}}
    config = Config.of(tree)
    assert not any("proxy" in note for note in plan_of(config)["notes"])
    monkeypatch.setenv("https_proxy", "http://proxy.example:3128")
    assert any("has a proxy (https_proxy)" in note for note in plan_of(config)["notes"])

"""Fetching from a real server that misbehaves in every way the web does."""

import asyncio
import errno
import hashlib
import http.server
import io
import os
import pathlib
import pickle
import re
import socket
import struct
import threading
import time
import unicodedata
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from namedmask import images
from namedmask.config import FetchConfig
from namedmask.errors import SchemaError
from namedmask.fetch import addresses, download
from namedmask.fetch import stage as fetch_module
from namedmask.fetch.stage import Fetch
from tests import unprivileged


def jpeg(height=60, width=80, **options):
    rng = np.random.default_rng(0)
    array = images.resize(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8), height, width)
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "JPEG", quality=90, **options)
    return buffer.getvalue()


PHOTO = jpeg()
LARGE = jpeg(600, 800)


class Handler(http.server.BaseHTTPRequestHandler):
    """One path for each way a server behaves."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_GET(self):
        with self.server.lock:
            self.server.hits.append(self.path)
            self.server.headers_seen.append(dict(self.headers))
            self.server.now += 1
            self.server.most = max(self.server.most, self.server.now)
        try:
            name, _, argument = self.path.lstrip("/").partition("/")
            getattr(self, name)(argument)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True
        finally:
            with self.server.lock:
                self.server.now -= 1

    def answer(self, code=200, body=b"", **headers):
        self.send_response(code)
        for key, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(key.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def ok(self, _):
        self.answer(body=PHOTO, Content_Type="image/jpeg")

    def large(self, _):
        self.answer(body=LARGE)

    def code(self, argument):
        self.answer(int(argument), b"" if argument == "204" else b"no")

    def html(self, _):
        self.answer(body=b"<html>Domain for sale</html>", Content_Type="image/jpeg")

    def empty(self, _):
        self.answer()

    def cut(self, _):
        self.answer(body=LARGE[: len(LARGE) // 2])

    def bomb(self, _):
        buffer = io.BytesIO()
        Image.new("1", (3000, 3000)).save(buffer, "PNG")
        self.answer(body=buffer.getvalue())

    def slow(self, _):
        time.sleep(0.03)
        self.answer(body=PHOTO)

    def hang(self, _):
        self.server.released.wait(60)
        self.close_connection = True

    def drip(self, _):
        self.send_response(200)
        self.send_header("Content-Length", "100000")
        self.end_headers()
        while not self.server.released.wait(0.05):
            self.wfile.write(b"x")
        self.close_connection = True

    def endless(self, _):
        self.send_response(200)
        self.end_headers()
        while not self.server.released.is_set():
            self.wfile.write(b"\xff" * 65536)

    def announced(self, _):
        self.send_response(200)
        self.send_header("Content-Length", str(10**9))
        self.end_headers()
        self.close_connection = True

    def reset(self, _):
        self.send_response(200)
        self.send_header("Content-Length", str(len(PHOTO)))
        self.end_headers()
        self.wfile.write(PHOTO[:100])
        self.wfile.flush()
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True

    def once(self, argument):
        """503 the first time, the photo after."""
        first = self.server.hits.count(self.path) == 1
        self.answer(503 if first else 200, b"busy" if first else PHOTO)

    def noise(self, _):
        self.wfile.write(b"ICY 200 OK\r\n\r\n\x00\x01")
        self.close_connection = True

    def redirect(self, argument):
        self.answer(302, b"moved", Location=argument)

    def loop(self, _):
        self.answer(301, Location="/loop/")

    def nowhere(self, _):
        self.answer(302)

    def tagged(self, argument):
        self.answer(body=PHOTO, X_Robots_Tag=argument.replace("_", " "))

    def tagged_forever(self, _):
        self.send_response(200)
        self.send_header("X-Robots-Tag", "noai")
        self.end_headers()
        self.server.released.wait(60)
        self.close_connection = True


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 256

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.lock = threading.Lock()
        self.hits = []
        self.headers_seen = []
        self.now = self.most = 0
        self.released = threading.Event()
        self.address = f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, *_):
        pass


@pytest.fixture
def server():
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.02,))
        thread.start()
        yield running
        running.released.set()
        running.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def short_backoff_and_no_name_server(monkeypatch):
    real = socket.getaddrinfo

    def ask(host, *arguments, **options):
        if str(host).endswith(".invalid"):
            raise socket.gaierror(socket.EAI_NONAME, "no such name")
        return real(host, *arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", ask)
    monkeypatch.setattr(fetch_module, "BACKOFF_S", 0.01)
    addresses.resolved.clear()
    yield
    addresses.resolved.clear()


def table_of(urls, statuses=None):
    return pa.table({"url": urls, "status": statuses or ["ok"] * len(urls)})


def run(urls, statuses=None, **options):
    options = {"allow_loopback": True, "timeout_s": 30.0, **options}
    return Fetch(FetchConfig(**options))(table_of(urls, statuses))


def status(url, **options):
    return run([url], **options)["status"].to_pylist()[0]


def test_fetch_good_url_gives_bytes_and_size(server):
    row = run([f"{server.address}/ok/"]).to_pylist()[0]
    assert row == {
        "url": f"{server.address}/ok/", "status": "ok", "image": PHOTO,
        "image_height": 60, "image_width": 80,
    }  # fmt: skip
    sent = server.headers_seen[0]
    assert sent["User-Agent"].startswith("NamedMask/")


@pytest.mark.parametrize(
    ("path", "word"),
    [
        ("code/404", "http_404"), ("code/410", "http_410"), ("code/403", "http_403"),
        ("code/500", "http_500"), ("code/429", "http_429"), ("html/", "not_an_image"),
        ("cut/", "truncated"), ("empty/", "empty"), ("code/204", "empty"), ("reset/", "reset"),
        ("announced/", "too_big"), ("endless/", "too_big"), ("loop/", "too_many_redirects"),
        ("nowhere/", "http_302"), ("bomb/", "too_many_pixels"), ("noise/", "bad_response"),
        ("redirect/file:///etc/hostname", "bad_url"), ("redirect/ftp://a.b/c", "bad_url"),
        ("tagged/noai", "opted_out"),
    ],
)  # fmt: skip
def test_fetch_trouble_gives_its_reason(server, path, word):
    table = run([f"{server.address}/{path}"], max_bytes=1_000_000, max_pixels=5_000_000)
    assert table["status"].to_pylist() == [word]
    assert table["image"].null_count == table["image_height"].null_count == 1


@pytest.mark.parametrize("path", ["hang/", "drip/", "endless/", "redirect/hang"])
def test_fetch_server_that_never_ends_meets_total_deadline(server, path):
    start = time.monotonic()
    path = path.replace("redirect/hang", f"redirect/{server.address}/drip/")
    word = status(f"{server.address}/{path}", timeout_s=0.3, retries=0, max_bytes=10**12)
    assert word == "timeout"
    assert time.monotonic() - start < 20


@pytest.mark.parametrize(
    ("url", "word"),
    [
        ("http://127.0.0.1:9/x.jpg", "refused"),
        ("http://nothing.invalid/x.jpg", "dns"),
        ("ftp://example.com/a.jpg", "bad_url"),
        ("http://", "bad_url"),
        ("no url at all", "bad_url"),
        ("http://127.0.0.1:99999/", "bad_url"),
        ("http://[::1", "bad_url"),
        ("file:///etc/hostname", "outside_root"),
    ],
)
def test_fetch_url_that_leads_nowhere_gives_its_reason(url, word):
    assert status(url) == word


def test_fetch_transient_failure_is_retried_and_others_are_not(server):
    urls = [f"{server.address}/{path}" for path in ("once/1", "code/404", "reset/", "code/500")]
    table = run(urls, retries=2)
    assert table["status"].to_pylist() == ["ok", "http_404", "reset", "http_500"]
    hits = [server.hits.count(path) for path in ("/once/1", "/code/404", "/reset/", "/code/500")]
    assert hits == [2, 1, 3, 3]
    assert status(f"{server.address}/once/2", retries=0) == "http_503"


def test_fetch_redirects_are_followed_up_to_the_cap(server):
    one = f"{server.address}/redirect//ok/"
    two = f"{server.address}/redirect/{one}"
    assert status(two, max_redirects=2) == "ok"
    assert status(two, max_redirects=1) == "too_many_redirects"
    assert status(one, max_redirects=0) == "too_many_redirects"


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "127.1", "2130706433", "0x7f.1",
                                  "[::1]", "[::ffff:127.0.0.1]", "0.0.0.0"])  # fmt: skip
def test_fetch_loopback_not_allowed_is_never_connected(server, host):
    url = f"http://{host}:{server.server_port}/ok/"
    assert status(url, allow_loopback=False) in ("blocked_address", "bad_url")
    assert server.hits == []


@pytest.fixture
def connected(monkeypatch):
    """The addresses that the event loop was asked to connect to."""
    asked = []
    connect = asyncio.SelectorEventLoop.sock_connect

    async def noted(self, sock, address):
        asked.append(address[0])
        return await connect(self, sock, address)

    monkeypatch.setattr(asyncio.SelectorEventLoop, "sock_connect", noted)
    return asked


def test_fetch_private_addresses_are_never_connected(connected):
    hosts = [
        "169.254.169.254",
        "10.0.0.1",
        "192.168.1.1",
        "[fe80::1]",
        "[fd00:ec2::254]",
        "0.0.0.0",
    ]
    table = run([f"http://{host}/latest" for host in hosts])
    assert set(table["status"].to_pylist()) == {"blocked_address"}
    assert connected == []


def test_fetch_redirect_to_private_address_is_never_connected(server, connected):
    target = "http://169.254.169.254/latest/meta-data"
    assert status(f"{server.address}/redirect/{target}") == "blocked_address"
    assert connected == ["127.0.0.1"]


def test_fetch_redirect_to_loopback_when_not_allowed_is_blocked(server, monkeypatch):
    # stands for a public server: its one port is let through, any other on this machine is not
    real, port = addresses.open_socket, server.server_port

    def open_socket(_, address):
        return real(address[4][1] == port, address)

    monkeypatch.setattr(addresses, "open_socket", open_socket)
    with Server() as inside:
        thread = threading.Thread(target=inside.serve_forever, args=(0.02,))
        thread.start()
        url = f"{server.address}/redirect/{inside.address}/ok/"
        assert status(url, allow_loopback=False) == "blocked_address"
        assert status(f"{server.address}/ok/", allow_loopback=False) == "ok"
        inside.shutdown()
        thread.join()
    assert inside.hits == []


def test_fetch_name_that_answers_anew_is_judged_where_it_connects(server, monkeypatch):
    # whatever a check of the name would have seen, the socket's own address decides
    def lie(host, port, *_, **__):
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]

    monkeypatch.setattr(addresses.socket, "getaddrinfo", lie)
    url = f"http://rebound.example:{server.server_port}/ok/"
    assert status(url, allow_loopback=False) == "blocked_address"
    assert server.hits == []
    assert status(url, allow_loopback=True) == "ok"


def test_fetch_dead_name_is_asked_once_a_batch(monkeypatch):
    asked = []

    def fail(host, *_, **__):
        asked.append(host)
        time.sleep(0.05)
        raise socket.gaierror(socket.EAI_NONAME, "no such name")

    monkeypatch.setattr(addresses.socket, "getaddrinfo", fail)
    table = run([f"http://gone.example/{i}.jpg" for i in range(40)])
    assert set(table["status"].to_pylist()) == {"dns"}
    assert asked == ["gone.example"]


def test_fetch_name_server_that_hangs_delays_nothing_but_its_row(server, monkeypatch):
    real, released = socket.getaddrinfo, threading.Event()

    def hang(host, *arguments, **options):
        if host == "stuck.example":
            released.wait(60)
            raise socket.gaierror(socket.EAI_AGAIN, "late")
        return real(host, *arguments, **options)

    monkeypatch.setattr(addresses.socket, "getaddrinfo", hang)
    start = time.monotonic()
    urls = ["http://stuck.example/a", f"{server.address}/ok/"]
    table = run(urls, timeout_s=1.5, retries=0)
    assert time.monotonic() - start < 20
    released.set()
    assert table["status"].to_pylist() == ["timeout", "ok"]


def test_fetch_https_from_a_server_without_tls_is_bad_tls(server):
    assert status(server.address.replace("http:", "https:") + "/ok/") == "bad_tls"


def test_fetch_opt_out_is_honored_before_the_body(server):
    start = time.monotonic()
    assert status(f"{server.address}/tagged_forever/") == "opted_out"
    assert time.monotonic() - start < 20
    assert status(f"{server.address}/tagged/noai", honor_opt_out=False) == "ok"
    assert status(f"{server.address}/tagged/otherbot:_noai") == "ok"


def test_fetch_longest_side_shrinks_larger_images_only(server):
    table = run([f"{server.address}/large/", f"{server.address}/ok/"], longest_side=200)
    assert table["image_height"].to_pylist() == [150, 60]
    assert table["image_width"].to_pylist() == [200, 80]
    large, small = table["image"].to_pylist()
    assert images.decode(large).shape == (150, 200, 3)
    assert large.startswith(b"\xff\xd8\xff")
    assert small == PHOTO


def test_fetch_sideways_photo_tells_its_upright_size(server, monkeypatch):
    exif = Image.Exif()
    exif[0x0112] = 6
    monkeypatch.setitem(globals(), "PHOTO", jpeg(exif=exif))
    row = run([f"{server.address}/ok/"]).to_pylist()[0]
    assert (row["image_height"], row["image_width"]) == (80, 60)
    assert images.decode(row["image"]).shape == (80, 60, 3)


def test_fetch_mixed_batch_keeps_order_and_leaves_good_rows_alone(server):
    paths = ["ok/", "code/404", "hang/", "ok/", "reset/", "html/", "large/", "loop/", "ok/"] * 4
    urls = [f"{server.address}/{path}" for path in paths] + ["", "http://nothing.invalid/"]
    table = run(urls, timeout_s=3.0, retries=0)
    words = {"ok": "ok", "large": "ok", "code": "http_404", "hang": "timeout", "reset": "reset",
             "html": "not_an_image", "loop": "too_many_redirects"}  # fmt: skip
    assert table["url"].to_pylist() == urls
    assert table["status"].to_pylist() == [words[path.split("/")[0]] for path in paths] + [
        "bad_url",
        "dns",
    ]
    for path, image in zip(paths, table["image"].to_pylist(), strict=False):
        assert image == {"ok/": PHOTO, "large/": LARGE}.get(path)


def test_fetch_dead_rows_pass_untouched_and_are_not_asked_for(server):
    urls = [f"{server.address}/ok/{i}" for i in range(4)]
    before = table_of(urls, ["ok", "unsafe", "duplicate_url", "ok"])
    before = before.append_column("image", pa.array([None, b"old", None, None], pa.binary()))
    copy = pickle.loads(pickle.dumps(before))
    after = Fetch(FetchConfig(allow_loopback=True))(before)
    assert before.equals(copy)
    assert after["status"].to_pylist() == ["ok", "unsafe", "duplicate_url", "ok"]
    assert after["image"].to_pylist() == [PHOTO, b"old", None, PHOTO]
    assert sorted(server.hits) == ["/ok/0", "/ok/3"]


@pytest.mark.parametrize("algorithm", ["md5", "sha256"])
def test_fetch_bytes_that_are_not_the_promised_ones_are_content_changed(
    server, algorithm, tmp_path
):
    (tmp_path / "a.jpg").write_bytes(PHOTO)
    right, wrong = (hashlib.new(algorithm, body).hexdigest() for body in (PHOTO, b"another"))
    urls = [f"{server.address}/{path}" for path in ("ok/1", "ok/2", "ok/3", "ok/4", "html/")]
    urls += [(tmp_path / "a.jpg").as_uri()] * 2 + [f"{server.address}/{path}" for path in
             ("empty/", "code/404")]  # fmt: skip
    hashes = [right, wrong, None, "", right, right, wrong, right, right]
    table = table_of(urls).append_column(algorithm, pa.array(hashes, pa.string()))
    config = FetchConfig(allow_loopback=True, longest_side=40, file_root=str(tmp_path))
    result = Fetch(config)(table)
    assert result["status"].to_pylist() == [
        "ok", "content_changed", "ok", "ok", "content_changed", "ok", "content_changed", "empty",
        "http_404",
    ]  # fmt: skip
    assert result["image"].null_count == 5


def test_fetch_one_of_two_hashes_that_is_wrong_is_content_changed(server):
    table = table_of([f"{server.address}/ok/{number}" for number in range(3)])
    md5, sha256 = hashlib.md5(PHOTO).hexdigest(), hashlib.sha256(PHOTO).hexdigest()
    table = table.append_column("md5", pa.array([md5, md5, "0" * 32]))
    table = table.append_column("sha256", pa.array([sha256, "0" * 64, sha256]))
    words = Fetch(FetchConfig(allow_loopback=True))(table)["status"].to_pylist()
    assert words == ["ok", "content_changed", "content_changed"]


@pytest.mark.parametrize("statuses", [[], ["http_404", "unsafe"]])
def test_fetch_table_with_nothing_to_fetch_has_all_columns(statuses):
    urls = pa.array(["http://a.com/"] * len(statuses), pa.string())
    table = pa.table({"url": urls, "status": pa.array(statuses, pa.string())})
    out = Fetch(FetchConfig())(table)
    assert out.num_rows == len(statuses)
    assert set(Fetch.adds) <= set(out.column_names)
    assert out["image"].type == pa.large_binary()


def test_fetch_without_url_column_says_what_is_missing():
    with pytest.raises(SchemaError, match="'url' missing before stage 'fetch'"):
        Fetch(FetchConfig())(pa.table({"status": ["ok"]}))


def test_fetch_per_host_and_in_flight_limits_hold(server):
    urls = [f"{server.address}/slow/{i}" for i in range(24)]
    run(urls, per_host=3)
    assert 1 < server.most <= 3
    server.most = 0
    run(urls, per_host=24, in_flight=5)
    assert 3 < server.most <= 5


def test_fetch_slow_host_does_not_hold_up_another(server):
    with Server() as slow:
        thread = threading.Thread(target=slow.serve_forever, args=(0.02,))
        thread.start()
        urls = [f"http://localhost:{slow.server_port}/hang/{i}" for i in range(4)]
        urls += [f"{server.address}/ok/{i}" for i in range(8)]
        begun = time.monotonic()
        out = run(urls, per_host=2, in_flight=4, timeout_s=1.0, retries=0)
        assert out["status"].to_pylist() == ["timeout"] * 4 + ["ok"] * 8
        # 2 slots for the 4 rows of the slow host: waiting for a turn cost none its own time
        assert time.monotonic() - begun > 1.9
        slow.released.set()
        slow.shutdown()
        thread.join()


def test_fetch_same_connection_serves_many_rows(server):
    ports = set()
    handle = Handler.ok

    def noted(self, argument):
        ports.add(self.client_address[1])
        handle(self, argument)

    Handler.ok, saved = noted, Handler.ok
    try:
        run([f"{server.address}/ok/{i}" for i in range(40)], per_host=4)
    finally:
        Handler.ok = saved
    assert len(ports) <= 4


def test_fetch_called_from_threads_and_from_a_running_loop(server):
    stage = pickle.loads(pickle.dumps(Fetch(FetchConfig(allow_loopback=True))))
    table = table_of([f"{server.address}/ok/{i}" for i in range(5)])

    async def inside():
        return stage(table)

    with ThreadPoolExecutor(3) as threads:
        results = list(threads.map(stage, [table] * 3))
    results.append(asyncio.run(inside()))
    assert all(result["status"].to_pylist() == ["ok"] * 5 for result in results)


def test_fetch_leaves_no_thread_behind(server):
    urls = [f"{server.address}/{path}" for path in ("ok/", "reset/", "cut/", "endless/")] * 5
    run(urls, max_bytes=10**6)

    def ours():
        return [one.name for one in threading.enumerate() if one.name.startswith("namedmask")]

    deadline = time.monotonic() + 20
    while ours() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert ours() == []


def test_fetch_files_below_the_root_are_read(tmp_path):
    root = tmp_path / "photos"
    (root / "a b").mkdir(parents=True)
    (root / "a b" / "ü.jpg").write_bytes(PHOTO)
    (root / "page.jpg").write_bytes(b"<html>")
    (root / "big.jpg").write_bytes(LARGE)
    (tmp_path / "secret.jpg").write_bytes(PHOTO)
    (root / "link.jpg").symlink_to(tmp_path / "secret.jpg")
    names = ["a b/ü.jpg", "page.jpg", "none.jpg", "link.jpg", "a b", "big.jpg"]
    urls = [(root / name).as_uri() for name in names]
    urls += [f"{root.as_uri()}/../secret.jpg", f"{root.as_uri()}/%2e%2e/secret.jpg"]
    table = run(urls, file_root=str(root), max_bytes=len(PHOTO) + 100)
    assert table["status"].to_pylist() == [
        "ok", "not_an_image", "no_file", "outside_root", "no_file", "too_big",
        "outside_root", "outside_root",
    ]  # fmt: skip
    assert table["image"].to_pylist()[0] == PHOTO


def test_fetch_fault_of_the_program_is_crashed_and_logged(server, monkeypatch, caplog):
    def broken(*_):
        raise RuntimeError("a bug")

    monkeypatch.setattr(download, "header_opt_out", broken)
    assert status(f"{server.address}/ok/") == "crashed"
    assert re.search("a bug", caplog.text)


def test_fetch_file_outside_the_root_has_a_status_of_its_own(tmp_path):
    root = tmp_path / "photos"
    root.mkdir()
    (tmp_path / "photos2").mkdir()
    for path in (tmp_path / "a.jpg", tmp_path / "photos2/a.jpg"):
        path.write_bytes(PHOTO)
    (root / "link.jpg").symlink_to(tmp_path / "a.jpg")
    (root / "linked").symlink_to(tmp_path / "photos2")
    urls = [
        f"{root.as_uri()}/link.jpg", f"{root.as_uri()}/linked/a.jpg", f"{root.as_uri()}/..%2fa.jpg",
        f"{root.as_uri()}2/a.jpg", "file:///proc/self/root/etc/hostname", "file:///",
    ]  # fmt: skip
    assert set(run(urls, file_root=str(root))["status"].to_pylist()) == {"outside_root"}
    assert set(run(urls)["status"].to_pylist()) == {"outside_root"}
    inside = run(urls, file_root=str(tmp_path))["status"].to_pylist()
    assert inside == ["ok"] * 4 + ["outside_root"] * 2


def test_fetch_file_in_the_other_normal_form_is_read_but_not_through_a_link(tmp_path):
    root = tmp_path / "photos"
    root.mkdir()
    (tmp_path / "secret.jpg").write_bytes(PHOTO)
    (root / unicodedata.normalize("NFD", "ü.jpg")).write_bytes(PHOTO)
    (root / unicodedata.normalize("NFD", "é.jpg")).symlink_to(tmp_path / "secret.jpg")
    names = [unicodedata.normalize("NFC", name) for name in ("ü.jpg", "é.jpg", "å.jpg")]
    table = run([(root / name).as_uri() for name in names], file_root=str(root))
    assert table["status"].to_pylist() == ["ok", "outside_root", "no_file"]


def test_fetch_path_that_leads_to_no_file_is_no_file(tmp_path):
    (tmp_path / "self.jpg").symlink_to("self.jpg")
    (tmp_path / "dead.jpg").symlink_to("gone.jpg")
    (tmp_path / "a.jpg").write_bytes(PHOTO)
    os.mkfifo(tmp_path / "pipe.jpg")
    root = tmp_path.as_uri()
    names = ["self.jpg", "dead.jpg", "a.jpg/b.jpg", "pipe.jpg", "a%00b", "x" * 300, "x/" * 3000, ""]
    table = run([f"{root}/{name}" for name in names], file_root=str(tmp_path), retries=0)
    assert table["status"].to_pylist() == ["no_file"] * len(names)


def test_fetch_file_that_may_not_be_read_has_a_status_of_its_own(tmp_path, caplog):
    (tmp_path / "closed").mkdir()
    for name in ("a.jpg", "b.jpg", "closed/c.jpg"):
        (tmp_path / name).write_bytes(PHOTO)
    (tmp_path / "b.jpg").chmod(0)
    (tmp_path / "closed").chmod(0)
    urls = [(tmp_path / name).as_uri() for name in ("a.jpg", "b.jpg", "closed/c.jpg")]
    out = unprivileged.run(
        "import pyarrow as pa; from namedmask.config import FetchConfig\n"
        "from namedmask.fetch.stage import Fetch\n"
        f"table = pa.table({{'url': {urls!r}, 'status': ['ok'] * 3}})\n"
        f"print(Fetch(FetchConfig(file_root={str(tmp_path)!r}))(table)['status'].to_pylist())"
    )
    (tmp_path / "closed").chmod(0o755)
    assert out.strip() == "['ok', 'no_permission', 'no_permission']"


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.EREMOTEIO, errno.ENODEV])
def test_fetch_disk_that_fails_is_unreadable_and_tried_again(tmp_path, monkeypatch, number):
    # a disk that fails cannot be had; the system call is the last part that is ours
    (tmp_path / "a.jpg").write_bytes(PHOTO)
    tries = []

    def failing(path):
        tries.append(path)
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr(pathlib.Path, "read_bytes", failing)
    monkeypatch.setattr(fetch_module, "BACKOFF_S", 0.01)
    table = run([(tmp_path / "a.jpg").as_uri()], file_root=str(tmp_path), retries=2)
    assert table["status"].to_pylist() == ["unreadable"]
    assert len(tries) == 3

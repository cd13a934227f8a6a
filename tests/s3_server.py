"""A real S3 server (moto) for the tests, and a proxy before it that fails as S3 does, by count."""

from __future__ import annotations

import http.client
import logging
import tempfile
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from namedmask.storage import s3_client

BUCKET = "runs"
TROUBLE = {500: "InternalError", 503: "SlowDown"}

S3_WARNINGS = [
    # what a later Python will drop
    pytest.mark.filterwarnings("ignore::DeprecationWarning:botocore"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:moto"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:werkzeug"),
]

HOP_BY_HOP = ("connection", "transfer-encoding", "keep-alive", "expect")


class Proxy(ThreadingHTTPServer):
    """Hands requests on to `upstream`; every `every`-th is answered with an error instead.

    By turns an error comes before the request is handed on, after it was, or as a body cut short.
    """

    daemon_threads = True

    def __init__(self, upstream: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.upstream = urlsplit(upstream).netloc
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.lock = threading.Lock()
        self.serial = threading.Lock()  # moto looks at a condition first and writes later
        self.every = 0
        self.refusal: tuple[int, str] | None = None
        self.requests: list[tuple[str, str]] = []
        self.failed: list[str] = []
        self.sent_bytes = 0  # of bodies
        self._answered = 0

    def handle_error(self, *_: Any) -> None:
        """Say nothing of clients that were killed."""

    def reset(self, every: int = 0) -> None:
        """Forget what was counted, and fail every `every`-th request from now on."""
        with self.lock:
            self.every, self.refusal, self._answered = every, None, 0
            self.requests, self.failed, self.sent_bytes = [], [], 0

    def trouble(self, method: str, path: str) -> tuple[str, int, str]:
        """Return (how to fail this request or nothing, status, code)."""
        with self.lock:
            self.requests.append((method, path))
            self._answered += 1
            if self.refusal:
                return "before", *self.refusal
            if not self.every or self._answered % self.every:
                return "", 0, ""
            turn = self._answered // self.every
            how = ("before", "after", "cut")[turn % 3]
            if how == "cut" and method != "GET":
                how = "after"
            self.failed.append(f"{how} {method}")
            status = 500 if turn % 2 else 503
            return how, status, TROUBLE[status]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Proxy

    def log_message(self, *_: Any) -> None:
        pass

    def handle_any(self) -> None:
        size = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(size) if size else None
        how, status, code = self.server.trouble(self.command, self.path)
        if how == "before":
            self.answer_error(status, code)
            return
        upstream = http.client.HTTPConnection(self.server.upstream, timeout=30)
        headers = {k: v for k, v in self.headers.items() if k.lower() not in HOP_BY_HOP}
        with self.server.serial, closing(upstream):
            upstream.request(self.command, self.path, body, headers)
            response = upstream.getresponse()
            data = response.read()
        with self.server.lock:
            self.server.sent_bytes += len(data)
        if how == "after":
            self.answer_error(status, code)
            return
        self.send_response_only(response.status)
        for name, value in response.getheaders():
            if name.lower() not in (*HOP_BY_HOP, "content-length"):
                self.send_header(name, value)
        length = response.headers["Content-Length"] if self.command == "HEAD" else str(len(data))
        self.send_header("Content-Length", length or "0")
        self.end_headers()
        if how == "cut" and len(data) > 1:
            self.wfile.write(data[: len(data) // 2])
            self.close_connection = True
            return
        self.wfile.write(data)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = handle_any

    def answer_error(self, status: int, code: str) -> None:
        text = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>x</Message>\
</Error>"
        body = b"" if self.command == "HEAD" else text.encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@contextmanager
def s3_server(scratch: Path) -> Iterator[Proxy]:
    """Run moto and the proxy; the environment names the proxy, and one bucket is there.

    What S3 makes on the disk lands in `scratch`.
    """
    from botocore.retries.standard import ExponentialBackoff
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # a line for each request
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    proxy = Proxy(f"http://{host}:{port}")
    thread = threading.Thread(target=proxy.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    with pytest.MonkeyPatch.context() as patch:
        for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_CA_BUNDLE", "AWS_ENDPOINT_URL"):
            patch.delenv(name, raising=False)
        patch.setenv("AWS_ENDPOINT_URL_S3", proxy.url)
        patch.setenv("AWS_ACCESS_KEY_ID", "testing")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "secret-of-the-tests")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        patch.setenv("AWS_CONFIG_FILE", "/nowhere")
        patch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nowhere")
        patch.setenv("TMPDIR", str(scratch))
        patch.setattr(tempfile, "tempdir", str(scratch))
        # the same retries, without the waits of up to 20 s between them
        patch.setattr(ExponentialBackoff, "delay_amount", lambda self, context: 0.001)
        s3_client.client_of.cache_clear()
        s3_client.client().create_bucket(Bucket=BUCKET)
        try:
            yield proxy
        finally:
            s3_client.client().close()
            s3_client.client_of.cache_clear()
            proxy.shutdown()
            proxy.server_close()
            server.stop()

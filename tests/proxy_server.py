"""A forward proxy on this machine: plain requests and tunnels, by a table of hosts of its own."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

from tests.raw_server import head


class ProxyServer:
    """Listens on an address of this machine; `hosts` says where each name leads.

    `asked` has the first line of each request, `authorizations` what came with it.
    """

    def __init__(self, hosts: dict[str, int], refusal: str = "") -> None:
        self.hosts = hosts
        self.refusal = refusal
        self.asked: list[str] = []
        self.authorizations: list[str] = []
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.port: int = self.listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.threads = [threading.Thread(target=self._listen)]
        self.open: list[socket.socket] = []

    def __enter__(self) -> ProxyServer:
        self.threads[0].start()
        return self

    def __exit__(self, *_: Any) -> None:
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        for one in self.open:
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        for thread in self.threads:
            thread.join(20)

    def _listen(self) -> None:
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            self.open.append(connection)
            self._start(self._serve, connection)

    def _start(self, target: Any, *arguments: Any) -> None:
        self.threads.append(threading.Thread(target=target, args=arguments))
        self.threads[-1].start()

    def _serve(self, connection: socket.socket) -> None:
        connection.settimeout(10)
        with connection, suppress(OSError):  # one of the sides went away
            self._forward(connection)

    def _forward(self, connection: socket.socket) -> None:
        """Answer one request, and leave the rest of the connection to the server behind it."""
        request = b""
        while b"\r\n\r\n" not in request:
            part = connection.recv(65536)
            if not part:
                return
            request += part
        first, _, rest = request.partition(b"\r\n")
        method, target, _ = first.decode().split(" ")
        self.asked.append(f"{method} {target}")
        self.authorizations += [line.decode() for line in rest.split(b"\r\n")
                                if line.lower().startswith(b"proxy-authorization:")]  # fmt: skip
        parts = urlsplit(f"//{target}" if method == "CONNECT" else target)
        port = self.hosts.get(parts.hostname or "")
        if self.refusal or port is None:
            connection.sendall(head("Content-Length: 0", status=self.refusal or "502 No Such Host"))
            return
        with socket.create_connection(("127.0.0.1", port), timeout=10) as server:
            if method == "CONNECT":
                connection.sendall(head(status="200 Connection established"))
                self._start(self._pump, connection, server)
            else:
                server.sendall(f"{method} /{target.split('/', 3)[3]} HTTP/1.1\r\n".encode() + rest)
                server.shutdown(socket.SHUT_WR)  # one request, then the server hangs up
            self._pump(server, connection)

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while part := source.recv(65536):
                sink.sendall(part)
            sink.shutdown(socket.SHUT_WR)

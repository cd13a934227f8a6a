"""A server that writes to its sockets what no HTTP library would, one function a path."""

from __future__ import annotations

import datetime
import socket
import ssl
import struct
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

Answer = Callable[["Talk"], None]


class Talk:
    """One request and the socket that it came by."""

    def __init__(self, server: RawServer, connection: socket.socket, request: bytes) -> None:
        self.server = server
        self.connection = connection
        self.request = request

    def say(self, *parts: bytes) -> None:
        for part in parts:
            self.connection.sendall(part)

    def wait(self, seconds: float = 60) -> bool:
        """Return whether the test is over; wait so long for it."""
        return self.server.released.wait(seconds)

    def for_ever(self, part: bytes, every: float = 0) -> None:
        while not self.wait(every):
            self.say(part)

    def reset(self) -> None:
        linger = struct.pack("ii", 1, 0)
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.connection.close()


def head(*lines: str, status: str = "200 OK") -> bytes:
    return "\r\n".join([f"HTTP/1.1 {status}", *lines, "", ""]).encode()


def answer(body: bytes, *lines: str, status: str = "200 OK") -> Answer:
    """Return the well behaved answer with `body`; the connection lives on."""
    said = head(f"Content-Length: {len(body)}", *lines, status=status) + body
    return lambda talk: talk.say(said)


class RawServer:
    """Listens on an address of this machine; a thread a connection, until the end of the test."""

    def __init__(
        self, answers: dict[str, Answer], tls: ssl.SSLContext | None = None, host: str = "127.0.0.1"
    ) -> None:
        self.answers = answers
        self.tls = tls
        self.released = threading.Event()
        self.paths: list[str] = []
        self.connections = 0
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self.listener = socket.create_server((host, 0), backlog=256, family=family)
        self.port: int = self.listener.getsockname()[1]
        shown = f"[{host}]" if ":" in host else host
        self.url = f"http{'s' if tls else ''}://{shown}:{self.port}"
        self.threads = [threading.Thread(target=self._listen)]

    def __enter__(self) -> RawServer:
        self.threads[0].start()
        return self

    def __exit__(self, *_: Any) -> None:
        self.released.set()
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        for thread in self.threads:
            thread.join(20)

    def _listen(self) -> None:
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            self.connections += 1
            self.threads.append(threading.Thread(target=self._serve, args=(connection,)))
            self.threads[-1].start()

    def _serve(self, connection: socket.socket) -> None:
        connection.settimeout(10)
        try:
            with connection if self.tls is None else self._wrapped(connection) as speaking:
                while not self.released.is_set() and (request := self._request(speaking)):
                    path = request.split(b" ", 2)[1].decode()
                    self.paths.append(path)
                    self.answers["/" + path.split("/")[1]](Talk(self, speaking, request))
        except OSError:  # the other side went away, as it should
            pass

    def _wrapped(self, connection: socket.socket) -> socket.socket:
        assert self.tls is not None
        return self.tls.wrap_socket(connection, server_side=True)

    def _request(self, connection: socket.socket) -> bytes:
        request = b""
        while not request.endswith(b"\r\n\r\n"):
            part = connection.recv(65536)
            if not part:
                return b""
            request += part
        return request


def certificate(folder: Path, name: str = "localhost") -> tuple[Path, Path]:
    """Return the paths of a key and of a certificate for `name` that nobody vouches for."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    made = x509.CertificateBuilder(subject, subject, key.public_key(), x509.random_serial_number())
    made = made.not_valid_before(now - datetime.timedelta(1)).not_valid_after(
        now + datetime.timedelta(1)
    )
    made = made.add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
    pem = serialization.Encoding.PEM
    plain = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    (folder / "key.pem").write_bytes(key.private_bytes(pem, *plain))
    (folder / "cert.pem").write_bytes(made.sign(key, hashes.SHA256()).public_bytes(pem))
    return folder / "key.pem", folder / "cert.pem"

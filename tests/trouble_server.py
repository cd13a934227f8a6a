"""A fast server in a process of its own whose paths say what goes wrong, and who asked for what.

`/ok/7.jpg` is a picture, `/http_404/7` an answer of that status; see `answer_to`. `/hits/AGENT` is
JSON: how often each path was asked for by who has that User-Agent.
"""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.request import urlopen

from tests import toys

PICTURES = 60
"""Different pictures; path numbers beyond begin anew."""

_AGENT = re.compile(rb"user-agent: ([^\r]*)", re.IGNORECASE)


class Talk(asyncio.Protocol):
    """One connection, kept alive."""

    def __init__(self, pictures: list[bytes], hits: defaultdict[str, Counter[str]]) -> None:
        self._pictures, self._hits = pictures, hits
        self._heard = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Remember where to answer."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Answer every request that is whole."""
        *requests, self._heard = (self._heard + data).split(b"\r\n\r\n")
        for request in requests:
            path = request.split(b" ", 2)[1].decode()
            if path.startswith("/hits/"):
                body = json.dumps(self._hits[path.removeprefix("/hits/")]).encode()
                self._transport.write(said(200, body))
                continue
            agent = _AGENT.search(request)
            self._hits[agent[1].decode() if agent else ""][path] += 1
            answer = self.answer_to(path)
            if answer is None:
                self._transport.abort()
            else:
                self._transport.write(answer)

    def answer_to(self, path: str) -> bytes | None:
        """Return the answer to a path; empty: none ever; None: the connection is reset."""
        _, word, name = path.split("/")
        picture = self._pictures[int(name.partition(".")[0]) % PICTURES]
        if word.startswith("http_"):
            return said(int(word.removeprefix("http_")))
        answers = {
            "ok": said(200, picture),
            "html": said(200, b"<html>gone shopping</html>"),
            "truncated": said(200, picture[: len(picture) // 2]),
            "empty": said(200),
            "big": b"HTTP/1.1 200 OK\r\nContent-Length: 99999999\r\n\r\n",
            "noai": said(200, picture, "X-Robots-Tag: noai\r\n"),
            "slow": b"",
        }
        return answers.get(word)


def said(status: int, body: bytes = b"", more: str = "") -> bytes:
    """Return an answer as bytes."""
    return f"HTTP/1.1 {status} X\r\n{more}Content-Length: {len(body)}\r\n\r\n".encode() + body


async def serve() -> None:
    """Serve for ever; the port is the one line on stdout."""
    colors = list(toys.COLORS.values())
    pictures = [toys.jpeg(toys.disk(colors[n % 3], n)) for n in range(PICTURES)]
    hits: defaultdict[str, Counter[str]] = defaultdict(Counter)
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Talk(pictures, hits), "127.0.0.1", 0, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


def hits_of(url: str, agent: str) -> Counter[str]:
    """Return how often an agent asked for each path."""
    with urlopen(f"{url}/hits/{agent}") as response:
        return Counter(json.load(response))


@contextmanager
def trouble_server() -> Iterator[str]:
    """Yield the url of such a server."""
    command = [sys.executable, "-m", "tests.trouble_server"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield f"http://127.0.0.1:{process.stdout.readline().strip()}"
        finally:
            process.kill()


if __name__ == "__main__":
    asyncio.run(serve())

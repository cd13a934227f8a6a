"""Answers of HTTP/1 as the web has them, made fit for aiohttp's parser, which is stricter.

The parser gets each head whole and after `repaired`, and then no more bytes than the body has. It
would refuse a good image for a space behind it, for a Content-Length that is said twice, or for one
header line without a colon. Browsers and urllib take such answers. Every image is decoded to its
last byte, so that a body of a wrong length cannot pass.
"""

from __future__ import annotations

import asyncio
import math
import re
from functools import partial
from typing import Any

import aiohttp
from aiohttp.client_proto import ResponseHandler
from aiohttp.http_exceptions import BadHttpMessage

HEAD_BYTES = 2**18
"""Maximum size of a status line with all its headers, in bytes, as in Chrome."""

HEADERS = 2**14
"""Maximum number of headers of an answer, including the trailers of a chunked body.

64 kB have room for no more lines."""

_HEAD_END = re.compile(rb"\r?\n\r?\n")
_NAME = rb"[\w!#$%&'*+.^`|~-]+"
_WELL_FORMED = re.compile(rb"[^\r\n]*\r?\n(?:" + _NAME + rb":[^\r\n\0]*\r?\n)*\r?\n")
_OTHER = rb"(?:(?!content-length:|transfer-encoding:)" + _NAME + rb":[^\r\n\0]*\r\n)*"
_SIMPLE = re.compile(
    rb"HTTP/1\.1 (?:200|[45]\d\d)[^\r\n]*\r\n"
    + _OTHER + rb"content-length: *(\d{1,18})\r\n" + _OTHER + rb"\r\n",
    re.IGNORECASE,
)  # fmt: skip
_FOLD = re.compile(rb"\r?\n[ \t]+")
_FIELD = re.compile(rb"(" + _NAME + rb")[ \t]*:([^\0]*)")
_LENGTH_FIELD = re.compile(rb"\ncontent-length:([^\r\n]*)\r?(?=\n)", re.IGNORECASE)
_LENGTH = re.compile(rb"\ncontent-length:[ \t]*(\d{1,18})[ \t]*\r?\n")
_CHUNKED = re.compile(rb"\ntransfer-encoding:[^\r\n]*chunked")
_STATUS = re.compile(rb"HTTP/\d\.\d +(\d{3})")


class Connector(aiohttp.TCPConnector):
    """A connector whose connections read answers as `Answers` does."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._factory = partial(_answers, loop=self._loop)


class Answers(ResponseHandler):
    """The answers on one connection, each of which is parsed up to its end and no further."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop)
        self._head = bytearray()
        self._left: float | None = None  # bytes of the body to come; None before its head has ended
        self._length: float | None = None
        self._used = False

    def set_response_params(self, **options: Any) -> None:
        """Expect the answer to the next request; called by aiohttp."""
        self._used = self._left is not None
        self._head = bytearray()
        self._left = None
        super().set_response_params(**options)

    def data_received(self, data: bytes) -> None:
        """Hand the parser what belongs to the answer, and drop what is behind it."""
        if self._parser is None or self._upgraded:
            super().data_received(data)
            return
        if self._left is None:
            if not self._head and (sizes := sizes_of_simple(data)):
                self._length, self._left = sizes
                super().data_received(data)
                return
            data = self._behind_head(data)
        if self._left is None or self.exception():
            return
        surplus = len(data) > self._left
        data = data[: int(self._left)] if surplus else data
        self._left -= len(data)
        super().data_received(data)
        if (error := self.exception()) and self._payload and not self._payload.is_eof():
            fault = aiohttp.ClientPayloadError(str(error))
            fault.__cause__ = error  # for a reader that comes later
            self._payload.set_exception(fault, error)
            self._payload = None  # the end of the connection would give it another error
        if surplus:
            self._retire()

    def connection_lost(self, exc: BaseException | None) -> None:
        """Let the parser say what is wrong with a head that has no end.

        Some servers pack a body and give the length of the unpacked body, which browsers accept.
        """
        if self._head and self._parser is not None:
            super().data_received(bytes(self._head))
            self._head.clear()
        body = self._payload
        if exc is None and self._left and body and body.total_bytes == self._length:
            body.feed_eof()
            self._payload = None
        super().connection_lost(exc)

    def _behind_head(self, data: bytes) -> bytes:
        """Parse the heads up to the first that is not 1xx, and return the bytes behind it."""
        searched = max(0, len(self._head) - 3)
        self._head += data if self._head else b""
        received = self._head or data.lstrip(b"\r\n")
        if received[:5] != b"HTTP/"[: len(received)]:
            # Bytes behind the previous answer may come late; then aiohttp asks again elsewhere.
            late = aiohttp.ServerDisconnectedError() if self._used else None
            self._refuse(late or BadHttpMessage("the answer is not HTTP/1"))
            return b""
        while self._left is None and (end := _HEAD_END.search(received, searched, HEAD_BYTES)):
            head, received, searched = received[: end.end()], received[end.end() :], 0
            self._left = self._length = body_bytes(head := repaired(bytes(head)))
            super().data_received(head)
        if self._left is not None:
            self._head = bytearray()
        elif len(received) > HEAD_BYTES:
            self._refuse(BadHttpMessage(f"the head of the answer has more than {HEAD_BYTES} bytes"))
        elif received is not self._head:
            self._head = bytearray(received)
        return bytes(received)

    def _refuse(self, error: Exception) -> None:
        self._head.clear()
        self.set_exception(error)
        if self.transport is not None:
            self.transport.close()

    def _retire(self) -> None:
        """Keep the connection from another use: its next answer would begin in the wrong place."""
        self.force_close()
        is_idle = self._payload is None or self._payload.is_eof()
        if is_idle and self.transport is not None:
            self.transport.close()


def _answers(loop: asyncio.AbstractEventLoop) -> ResponseHandler:
    return Answers(loop)


def sizes_of_simple(data: bytes) -> tuple[int, int] | None:
    """Return the size of a body and how much of it is to come, if the answer needs no more care.

    Nearly all answers need none: the head has come as a whole, without a fault, and nothing has
    come behind the body.
    """
    end = data.find(b"\r\n\r\n") + 4
    match = _SIMPLE.match(data, 0, end) if 4 < end <= HEAD_BYTES else None
    length = int(match[1]) if match else -1
    left = length + end - len(data)
    return (length, left) if match and left >= 0 else None


def body_bytes(head: bytes) -> float | None:
    """Return the size of the body behind a repaired head; None for a 1xx answer, which has none.

    The size is infinite if the parser finds the end itself: by chunks, or by the end of the
    connection. The parser also has the last word on a malformed head.
    """
    status = _STATUS.match(head)
    code = int(status[1]) if status else 0
    if 100 <= code < 200 and code != 101:
        return None
    if code in (204, 304):
        return 0
    fields = head.lower()
    length = _LENGTH.search(fields)
    return math.inf if length is None or _CHUNKED.search(fields) else int(length[1])


def repaired(head: bytes) -> bytes:
    """Return the head of an answer without the faults that browsers or urllib overlook.

    Folded headers become one line, and lines that are no headers are left out. One Content-Length
    is left of several that are equal, without its plus sign; none if it is empty or beside chunks.
    """
    if not _WELL_FORMED.fullmatch(head):
        first, *lines = _FOLD.sub(b" ", head).splitlines()
        fields = [match.groups() for line in lines if (match := _FIELD.fullmatch(line))]
        head = b"\r\n".join([first, *(name + b":" + value for name, value in fields), b"", b""])
    lower = head.lower()
    is_plain = lower.count(b"\ncontent-length:") == 1 and _LENGTH.search(lower)
    if is_plain and b"\ntransfer-encoding:" not in lower:
        return head
    lengths = [text.strip() for texts in _LENGTH_FIELD.findall(head) for text in texts.split(b",")]
    if lengths and (_CHUNKED.search(lower) or not any(lengths)):
        return _LENGTH_FIELD.sub(b"", head)
    if len(lengths) > 1 or (lengths and lengths[0].startswith(b"+")):
        size, *others = {text.removeprefix(b"+") for text in lengths}
        if size.isdigit() and not others:
            bare = _LENGTH_FIELD.sub(b"", head)
            return bare.replace(b"\n", b"\nContent-Length: " + size + b"\r\n", 1)
    return head

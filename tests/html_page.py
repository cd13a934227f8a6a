"""HTML read back: the words, tags and pictures of a page."""

from __future__ import annotations

import base64
from dataclasses import dataclass, field
from html.parser import HTMLParser

import numpy as np

from namedmask import images

VOID = {"meta", "img"}


@dataclass
class Page(HTMLParser):
    """What a report holds, and whether every element is closed where it should be."""

    text: str
    tags: list[str] = field(default_factory=list)
    images: list[dict[str, str]] = field(default_factory=list)
    words: list[str] = field(default_factory=list)
    addresses: list[str] = field(default_factory=list)
    open: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()
        self.feed(self.text)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag, attrs) -> None:
        self.tags.append(tag)
        self.addresses += [value for key, value in attrs if key in ("src", "href", "srcset")]
        if tag == "img":
            self.images.append(dict(attrs))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag) -> None:
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-1:]}"
        self.open.pop()

    def handle_data(self, data) -> None:
        if self.open[-1:] != ["style"]:
            self.words.append(data)

    @property
    def prose(self) -> str:
        return " ".join(" ".join(self.words).split())

    def pictures(self, word: str) -> list[np.ndarray]:
        """Return the decoded pictures whose description holds `word`."""
        found = [one["src"] for one in self.images if word in one["alt"]]
        return [images.decode(base64.b64decode(src.split(",", 1)[1])) for src in found]

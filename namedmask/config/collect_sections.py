"""The sections of what is read and downloaded: metadata, published vectors, and images.

A field's description gives the unit, special values, and the paper's choice (`Method:`).
"""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from namedmask.config.types import Cosine, Count, PoolSection, Section, Share, Source


def _proxy(text: str) -> str:
    if not re.fullmatch(r"|environment|https?://[^/\s]+/?", text):
        raise ValueError("expected http://host:port, https://host:port, 'environment' or nothing")
    return text


Proxy = Annotated[str, AfterValidator(_proxy)]


class MetadataConfig(PoolSection):
    """The sources of images, and the filters on their metadata."""

    source: tuple[Source, ...] = Field(
        (),
        description="Tables of urls (parquet, CSV, TSV, JSON lines, .txt; globs, s3://, "
        "http(s)://), or one folder of images.",
    )
    max_punsafe: Share = Field(
        0.5, description="Highest accepted probability of unsafe content. Method: safe mode, 0.5"
    )
    unknown_punsafe: Literal["keep", "drop"] = Field(
        "keep",
        description="`keep` or `drop` rows with no probability and no tag NSFW or UNLIKELY.",
    )
    min_similarity: Cosine = Field(
        -1.0,
        description="Lowest accepted cosine of image and caption, if known; -1: any. Method: none",
    )
    max_similarity: Cosine = Field(
        1.0,
        description="Highest accepted cosine of image and caption, if known; 1: any. Method: none",
    )
    max_pwatermark: Share = Field(
        1.0, description="Highest accepted watermark probability, if known; 1: any. Method: none"
    )
    min_side: int = Field(
        0, ge=0, description="Shortest accepted side in pixels, if known; 0: any. Method: none"
    )
    max_aspect: float = Field(
        0.0,
        ge=0.0,
        description="Highest accepted ratio of long to short side; 0: any. Method: none",
    )
    max_rows: int = Field(0, ge=0, description="Maximum number of rows to read; 0: all.")


class VectorsConfig(Section):
    """Published vectors, which replace the run's own vectors."""

    source: Source = Field(
        "", description="Folder of vectors in clip-retrieval's layout, also on s3://; empty: none."
    )
    proof_images: Count = Field(
        100,
        description="Number of images that are embedded first, to check that embed.model made the "
        "published vectors.",
    )
    proof_cosine: Cosine = Field(
        0.9, description="Lowest median cosine of new and published vectors, else the run ends."
    )
    unchanged_cosine: Cosine = Field(
        0.8,
        description="Lowest cosine of an image's new and published vectors; below it, the image is "
        "`content_changed`.",
    )


class FetchConfig(PoolSection):
    """The download of images: its limits, and the rules of image owners."""

    timeout_s: float = Field(
        20.0, gt=0, description="Seconds that one attempt at a url may take, redirects included."
    )
    max_bytes: Count = Field(20_000_000, description="Maximum size of a response body, in bytes.")
    max_pixels: Count = Field(50_000_000, description="Maximum size of a decoded image, in pixels.")
    max_redirects: int = Field(5, ge=0, description="Maximum number of redirects per url.")
    retries: int = Field(1, ge=0, description="Further attempts after a transient failure.")
    in_flight: Count = Field(128, description="Maximum number of concurrent requests per process.")
    per_host: Count = Field(16, description="Maximum concurrent requests per host and process.")
    processes: int = Field(
        1, ge=0, description="Processes that fetch with --local, on one core each; 0: one per core."
    )
    max_pause_s: float = Field(
        30.0,
        ge=0,
        description="Total seconds that a host may pause a batch of urls (Retry-After, and the "
        "Crawl-delay of robots.txt); beyond them, the host's other urls fail.",
    )
    longest_side: int = Field(
        0,
        ge=0,
        description="Longest side in pixels to which larger images are shrunk; 0: images are "
        "stored as downloaded.",
    )
    honor_opt_out: bool = Field(
        True,
        description="Skip images whose owner forbids machine learning (X-Robots-Tag, "
        "Content-Signal, Content-Usage, TDM-Reservation). Method: no",
    )
    opt_out_tags: tuple[str, ...] = Field(
        ("noai", "noimageai", "noml", "noindex", "noimageindex"),
        description="X-Robots-Tag directives that forbid an image, if honor_opt_out is true.",
    )
    robots_txt: bool = Field(False, description="Fetch the robots.txt of each site, and obey it.")
    user_agent: str = Field(
        "NamedMask/0.1 (+https://github.com/namedmask/namedmask)",
        description="User agent of all requests; add an address at which you can be reached.",
    )
    proxy: Proxy = Field(
        "",
        description="Proxy of all requests, http://host:port; `environment`: as http_proxy and "
        "https_proxy say; empty: none. no_proxy is respected.",
    )
    allow_loopback: bool = Field(False, description="Allow urls on this machine (tests, demo).")
    file_root: Source = Field(
        "", description="Folder to read file:// urls from; empty: refuse them."
    )

    @property
    def summary(self) -> str:
        """Return the number of concurrent requests, for the plan."""
        return f"{self.in_flight} requests at once"

"""Parcels: slices of waves as they travel between the processes of a graph.

A parcel is one row of a block of Ray Data: its label as JSON, and its rows as an Arrow stream.
Ray therefore never divides or joins slices, and reading a parcel copies no image.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass

import numpy as np
import pyarrow as pa

from namedmask.run.waves import WaveHeader

LABEL, ROWS = "parcel", "rows"
"""Names of the columns of a block with the labels and with the rows of its parcels."""

_SCHEMA = pa.schema([(LABEL, pa.string()), (ROWS, pa.large_binary())])


@dataclass(frozen=True)
class Parcel:
    """The label of a slice: its wave, its place in it, and the seconds that it spent per stage."""

    header: WaveHeader
    number: int  # of the slice in its wave
    first: int  # position of its first row in the wave
    rows: int
    seconds: Mapping[str, float]

    @property
    def name(self) -> str:
        """Return a name that no other slice of the graph has."""
        return f"{self.header.unit}-{self.number:05d}"


def pack(parcel: Parcel, table: pa.Table) -> pa.Table:
    """Return the block of a parcel with the rows of `table`."""
    data = to_bytes(table)
    ends = pa.py_buffer(np.array([0, data.size], np.int64))
    rows = pa.LargeBinaryArray.from_buffers(pa.large_binary(), 1, [None, ends, data])
    return pa.table([pa.array([json.dumps(asdict(parcel))]), rows], _SCHEMA)


def unpack(block: pa.Table) -> Iterator[tuple[Parcel, pa.Table]]:
    """Yield the parcels of a block with their rows."""
    for label, data in zip(block[LABEL], block[ROWS], strict=True):
        fields = json.loads(label.as_py())
        yield Parcel(WaveHeader(**fields.pop("header")), **fields), from_bytes(data.as_buffer())


def to_bytes(table: pa.Table) -> pa.Buffer:
    """Return a table as an Arrow stream."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()


def from_bytes(data: pa.Buffer | bytes) -> pa.Table:
    """Return the table in an Arrow stream."""
    with pa.ipc.open_stream(data) as reader:
        return reader.read_all()

"""Record batches: several events of one publish call in one entry of the stream.

A packed entry has these fields, in this order (see docs/reference/wire.md): `id` of its first event, `events` (how many), `before`
(how many events beyond one per entry the topic had before it), what its events share (`type`, headers), then, if they have keys,
`keysizes` and `keys`, and at last `sizes` and `data`. Sizes are JSON arrays of lengths in bytes, data and keys are what they measure,
end to end. The n-th event (from 0) has the identity `producer.epoch.(seq + n)` and the place `entry/n`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import accumulate, repeat

import msgspec

from headrace import limits
from headrace.backends.contract import Record

FIELDS_MIN = 10
"""Words (names and values) of the shortest packed entry: id, events, before, sizes, data."""
_PLACES = [b"/%d" % n for n in range(limits.batch_records_max)]
_encode = msgspec.json.encode
_decode = msgspec.json.Decoder(list[int]).decode


def chunks(run: Sequence[Record], packing: int) -> list[Sequence[Record]]:
    """The run in pieces of at most `packing` records and `limits.packing_bytes` of bodies; at least one record each."""
    out: list[Sequence[Record]] = []
    for start in range(0, len(run), packing):
        piece = run[start : start + packing]
        while sum([len(r.body) for r in piece]) > limits.packing_bytes and len(piece) > 1:
            size, fits = len(piece[0].body), 1
            while size + len(piece[fits].body) <= limits.packing_bytes:
                size += len(piece[fits].body)
                fits += 1
            out.append(piece[:fits])
            piece = piece[fits:]
        out.append(piece)
    return out


def words(chunk: Sequence[Record], constant: Sequence[tuple[bytes, bytes]]) -> list[bytes]:
    """A packed run as scripts/publish.lua takes it. All records of it share what `constant` says, and have a key or have none."""
    keyed = chunk[0].key is not None
    out = [b"%d" % len(chunk), b"2", b"%d" % len(constant), b"4" if keyed else b"2"]
    for pair in constant:
        out += pair
    bodies = [r.body for r in chunk]
    sizes, data = _encode([len(b) for b in bodies]), b"".join(bodies)
    if not keyed:
        out += (b"sizes", b"data", sizes, data)
        return out
    keys = [r.key or b"" for r in chunk]
    out += (b"keysizes", b"keys", b"sizes", b"data", _encode([len(k) for k in keys]), b"".join(keys), sizes, data)
    return out


def unpacked(token: bytes, fields: Sequence[bytes]) -> tuple[list[bytes], list[Sequence[bytes]]] | None:
    """The places and the fields of the events of a packed entry; None for any other entry, and for one that is not well formed."""
    if len(fields) < FIELDS_MIN or fields[2] != b"events" or fields[-4] != b"sizes" or fields[-2] != b"data":
        return None
    stem, dot, number = fields[1].rpartition(b".")
    shared, keys = fields[6:-4], None
    try:
        first, bodies = int(number), _slices(fields[-1], _decode(fields[-3]))
        if len(shared) > 3 and shared[-2] == b"keys":  # noqa: PLR2004 - names and values of keysizes and keys
            keys, shared = _slices(shared[-1], _decode(shared[-3])), shared[:-4]
        count = int(fields[3])
    except (ValueError, msgspec.DecodeError):
        return None
    if count > len(_PLACES) or len(bodies) != count or len(keys or bodies) != count:
        return None
    # Each column in one go: this is done for every event.
    columns: list[Iterable[bytes]] = [repeat(b"id"), [b"%b%b%d" % (stem, dot, n) for n in range(first, first + count)]]
    columns += [repeat(word) for word in shared]
    if keys is not None:
        columns += (repeat(b"key"), keys)
    columns += (repeat(b"data"), bodies)
    return [token + place for place in _PLACES[:count]], list(zip(*columns, strict=False))


def _slices(data: bytes, sizes: list[int]) -> list[bytes]:
    """Consecutive pieces of these sizes. Raises ValueError unless they add up."""
    ends = list(accumulate(sizes))
    if not ends or ends[-1] != len(data) or min(sizes) < 0:
        raise ValueError(sizes)
    return [data[start:end] for start, end in zip([0, *ends], ends, strict=False)]

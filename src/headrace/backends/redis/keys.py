"""Every key Headrace keeps on a Redis or Valkey server, documented once, beside its name.

Everything that belongs to a partition lives in the slot of its stream: `{orders}:x` and `orders` hash alike.
`P` below is the partition's stream key: the topic's name `T`, or `T.N` when it has several partitions.

Permanent keys: `P`, `{P}:delayed`, `{P}:delayed:G`, `{P}:retry:G`, `{P}:dead:G`, `{P}:group:G`, `{P}:workers:G`, `{P}:packed`,
`headrace:topics`, `headrace:grown`; while a topic grows `headrace:growing` and `{P}:moving`.
All others carry a time to live.
"""

from __future__ import annotations

from functools import lru_cache

from msgspec import Struct

TOPICS = b"headrace:topics"
"""hash: topic -> number of partitions. What `headrace topics` lists; written when a topic is first used."""

GROWN = b"headrace:grown"
"""hash: topic -> the numbers of partitions that it had before, with blanks between: programs that declare one of them are taken."""
GROWING = b"headrace:growing"
"""hash: topic -> number of partitions that it is getting, while it is."""


class PartitionKeys(Struct, frozen=True):
    """The keys of one partition."""

    stream: bytes
    """stream `P`: the events. Fields: CloudEvents attributes, `data` last."""
    ids: bytes
    """zset `{P}:ids`: caller-given id -> Unix ms when it is forgotten. Time to live: the longest window in use."""
    delayed: bytes
    """zset `{P}:delayed`: netstrings of an entry's fields -> Unix ms when it is appended to the stream."""

    packed: bytes
    """hash `{P}:packed`: `extra`, how many events beyond one per entry were ever appended in packed entries, and `gone`, how many of
    those are trimmed. In a topic that has grown also `of`, the number of partitions for which it takes events (0: none now), `to`, the
    number it is getting or got, `last`, its last entry before that, and of a new partition where its keys come from: `parent`, up to
    its entry `fence`. Absent while nothing was packed or grown."""
    moving: bytes
    """zset `{P}:moving`: what was in `{P}:delayed`, while the topic is getting more partitions."""

    def producer(self, producer: bytes) -> bytes:
        """The key of one producer's mark.

        string `{P}:producer:ID`: "epoch seq", its high-water mark. Time to live: a week after its last publish.
        """
        return b"{" + self.stream + b"}:producer:" + producer


class GroupKeys(Struct, frozen=True):
    """The keys of one group on one partition."""

    record: bytes
    """hash `{P}:group:G`: the group's ledger. `mode` (shared or ordered), `origin` (events of the stream before this group's first),
    `handled`, `dropped`, `replayed`, `added` (entries-added when last seen: tells a deleted stream from a destroyed group), `created`
    (Unix ms), and of packed entries, of their events beyond one each: `extra_origin` (before the group's first event), `extra_settled`.

    In ordered mode also `cursor` (the last settled entry), `read` (entries up to it), the lease: `owner`, `token`, `until` (Unix ms),
    and the dead: `trying` (event that is handled alone), `crashed`, `crashes` (workers that died at this cursor), `suspect`, `deaths`
    (workers that died of this event)."""
    retry: bytes
    """stream `{P}:retry:G`, with one group named G: events that G handles again. Fields: as in the stream, preceded by `id`,
    with `attempt` and `origin` (entry in the stream it was copied from); in ordered mode first of all `due` (Unix ms), and without
    a group. Settled entries are deleted."""
    delayed: bytes
    """zset `{P}:delayed:G`: netstrings of an entry's fields -> Unix ms when it is appended to the retry stream."""
    dead: bytes
    """stream `{P}:dead:G`: dead letters. Fields: as in the stream, with `attempt`, `origin`, `reason` before `data`."""
    workers: bytes
    """zset `{P}:workers:G`: worker -> Unix ms at which its lease ends, by the server's clock. Consumers are named `worker/slot`."""


class MemberKeys(Struct, frozen=True):
    """The keys of one group on a topic in ordered mode, whatever the number of partitions. They live in the slot of the topic's name."""

    workers: bytes
    """zset `{T}:workers:G`: worker -> Unix ms at which it is no longer counted, by the server's clock."""
    changes: bytes
    """stream `{T}:changes:G` of one entry: who came, went, or freed a partition last. Time to live: a day."""


@lru_cache(4096)
def members(topic: str, name: str) -> MemberKeys:
    """Keys of the workers that share a topic's partitions."""
    tag, g = b"{" + topic.encode() + b"}:", b":" + name.encode()
    return MemberKeys(workers=tag + b"workers" + g, changes=tag + b"changes" + g)


@lru_cache(4096)
def partition(stream: str) -> PartitionKeys:
    """Keys of the partition whose stream key this is."""
    key = stream.encode()
    tag = b"{" + key + b"}"
    return PartitionKeys(
        stream=key, ids=tag + b":ids", delayed=tag + b":delayed", packed=tag + b":packed", moving=tag + b":moving"
    )


@lru_cache(4096)
def group(stream: str, name: str) -> GroupKeys:
    """Keys of a group on the partition whose stream key this is."""
    tag, g = b"{" + stream.encode() + b"}:", b":" + name.encode()
    return GroupKeys(
        record=tag + b"group" + g,
        retry=tag + b"retry" + g,
        delayed=tag + b"delayed" + g,
        dead=tag + b"dead" + g,
        workers=tag + b"workers" + g,
    )

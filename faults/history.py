"""What one round left behind, read with plain clients: this file and the checker know the product by its documented wire alone."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import psycopg
import redis
from msgspec import Struct

Pair = tuple[str, int]
"""A key and a number: one event."""


class Ledger(Struct):
    """What the product says of one group: `headrace ledger --json`, the columns that count here."""

    topic: str
    group: str
    published: int
    replayed: int
    """What an earlier life of the group had set aside, when it was started anew: handled once more."""
    handled: int
    dead: int
    pending: int
    unread: int
    delayed: int
    retrying: int
    missing: int

    @property
    def open(self) -> int:
        """Events that have not come to an end."""
        return self.pending + self.unread + self.delayed + self.retrying


class History(Struct):
    """Everything that the checker looks at. Lists may hold an event several times; that is what is looked for."""

    tried: list[Pair]
    """Journals and the table `placed`: what publishers set out to publish, in order for each key."""
    acknowledged: list[Pair]
    log: list[Pair]
    """Entries of the topic, in order for each key."""
    done: list[str]
    """Entries of the second topic: `group key n`."""
    tally: dict[str, int]
    """How often an event was handled by `tally`, by `key n`."""
    closed: dict[str, int]
    """Likewise for `closing`, by `group key n`."""
    ledger: dict[str, list[int]]
    """By key, what `ledger` handled, in its order."""
    books: list[Pair]
    """Rows of `books`, in their order."""
    booked: list[tuple[int, str]]
    """The same rows: by which process, and when."""
    transfers: list[tuple[str, int, int, int]]
    """Rows of `bank`: key, number, giver, taker."""
    accounts: dict[int, int]
    outside: list[str]
    """Lines that `closing` wrote to a file: at least one for each."""
    dead: dict[str, list[Pair]]
    """Dead letters by group."""
    outbox: int
    """Rows that no relay has sent."""
    ledgers: list[Ledger]
    sql: bool = True
    """Whether there was a database."""
    forgetful: bool = False
    """Whether a failover may have forgotten entries that were read, but of which no publisher was told."""


def keep(history: History, path: Path) -> None:
    """Writes it down for whoever wants to know."""
    path.write_bytes(msgspec.json.encode(history))


def load(path: Path) -> History:
    """What `keep` wrote."""
    return msgspec.json.decode(path.read_bytes(), type=History)


def collect(
    servers: Sequence[redis.Redis], database: str, directory: Path, ledgers: list[Ledger], *, forgetful: bool
) -> History:
    """Reads everything; nothing runs any more. `servers`: every primary; `database`: a psycopg URL, or empty."""
    found = History([], [], [], [], {}, {}, {}, [], [], [], {}, [], {}, 0, ledgers, bool(database), forgetful)
    _read_journals(directory, found)
    names = {key.decode(): server for server in servers for key in server.scan_iter(count=1_000)}
    for name in sorted(names, key=_partition):  # a key that moved to another partition was in the lower one before
        if name == "done":
            found.done += [f"{body['by']} {body['key']} {body['n']}" for body in _bodies(names[name], name)]
        elif name.startswith("orders.") and name.count(".") == 1:
            found.log += [(body["key"], body["n"]) for body in _bodies(names[name], name)]
        else:
            _read_effects(names[name], name, found)
    if database:
        with psycopg.connect(database) as connection:
            _read_tables(connection, found)
    return found


def _read_journals(directory: Path, found: History) -> None:
    """A line that a kill tore is none: it was not written when the publish began."""
    for path in sorted((directory / "journal").glob("*")):
        for line in path.read_text().splitlines(keepends=True):
            if line.endswith("\n"):
                word, key, n = line.split()
                (found.tried if word == "try" else found.acknowledged).append((key, int(n)))
    outside = directory / "outside"
    if outside.exists():
        found.outside = outside.read_text().splitlines()


def _read_effects(server: redis.Redis, name: str, found: History) -> None:
    home, _, rest = name.rpartition("}:")
    if rest == "tally":
        found.tally.update(_counts(server, name))
    elif rest == "closed":
        found.closed.update(_counts(server, name))
    elif rest.startswith("ledger:"):
        numbers: Any = server.lrange(name, 0, -1)
        found.ledger.setdefault(rest.removeprefix("ledger:"), []).extend(map(int, numbers))
    elif rest.startswith("dead:"):
        group = rest.removeprefix("dead:")
        letters = found.dead.setdefault(group if home.startswith("{orders") else f"done/{group}", [])
        letters += [(str(body["key"]), int(body["n"])) for body in _bodies(server, name)]


def _counts(server: redis.Redis, name: str) -> dict[str, int]:
    counts: Any = server.hgetall(name)
    return {field.decode(): int(count) for field, count in counts.items()}


def _partition(name: str) -> int:
    """The number in `orders.3` and in `{orders.3}:ledger:a`."""
    own = re.match(r"\{?orders\.(\d+)", name)
    return -1 if own is None else int(own[1])


def _bodies(server: redis.Redis, stream: str) -> Iterator[dict[str, Any]]:
    entries: Any = server.xrange(stream)
    for _, fields in entries:
        data, start = fields[b"data"], 0
        for size in json.loads(fields.get(b"sizes", b"[%d]" % len(data))):  # several if it is packed
            body: dict[str, Any] = json.loads(data[start : start + size])
            start += size
            yield body


def _read_tables(connection: psycopg.Connection[Any], found: History) -> None:
    rows = connection.execute
    placed = [(key, n) for key, n in rows("SELECT key, n FROM placed ORDER BY id")]
    found.tried += placed
    found.acknowledged += placed
    found.books = [(key, n) for key, n in rows("SELECT key, n FROM books ORDER BY id")]
    found.booked = [(worker, str(at)) for worker, at in rows("SELECT worker, at FROM books ORDER BY id")]
    found.transfers = list(rows("SELECT key, n, giver, taker FROM transfers"))
    found.accounts = dict(list(rows("SELECT id, cents FROM accounts")))
    ((found.outbox,),) = rows("SELECT count(*) FROM headrace_outbox")

"""A publisher: numbered events, and a journal of what it tried and what was acknowledged, which is what the checker believes.

    python -m faults.publish direct NAME    publishes; a new life begins new keys, for it cannot know what became of the last ones
    python -m faults.publish named NAME     gives each event an id; a new life publishes what was not acknowledged again
    python -m faults.publish outbox NAME    publishes from transactions, some of which are rolled back; its journal is the table `placed`

SIGTERM ends it after what it has in hand. Journals are files FAULTS_DIR/journal/SOURCE with lines `try KEY N` and `ack KEY N`.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
import time
from typing import Final

from sqlalchemy import text
from sqlalchemy.exc import DBAPIError, InterfaceError
from sqlalchemy.ext.asyncio import AsyncSession

from faults import apps
from faults.apps import Order
from headrace import NotConnected
from headrace.errors import DurabilityError

KEYS: Final = 5
PACE_S: Final = 0.1
LATE: Final = "late"
"""Keys that end so have delayed events, which nobody promises an order for."""
PLACED: Final = text("INSERT INTO placed (key, n) VALUES (:key, :n)")


class Journal:
    """What one source tried and what was acknowledged; survives its process."""

    def __init__(self, source: str) -> None:
        self._path = apps.DIR / "journal" / source
        self._file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def write(self, word: str, orders: list[Order]) -> None:
        """Before anybody else hears of it."""
        os.write(self._file, "".join(f"{word} {o.key} {o.n}\n" for o in orders).encode())

    def open_orders(self) -> tuple[list[Order], dict[str, int]]:
        """What a former life tried and saw no acknowledgement of, in order; and the next number of each key."""
        tried: dict[tuple[str, int], None] = {}
        following: dict[str, int] = {}
        for line in self._path.read_text().splitlines():
            word, key, n = line.split()
            if word == "try":
                tried[key, int(n)] = None
                following[key] = int(n) + 1
            else:
                tried.pop((key, int(n)), None)
        return [Order(key, n) for key, n in tried], following


class Numbers:
    """The next events of a source."""

    def __init__(self, source: str, following: dict[str, int]) -> None:
        self._keys = [f"{source}.{k}" for k in range(KEYS)]
        self._following = {key: following.get(key, 0) for key in (*self._keys, f"{source}.{LATE}")}
        self.late = f"{source}.{LATE}"

    def next(self, key: str) -> Order:
        """The next one of a key."""
        self._following[key] += 1
        return Order(key, self._following[key] - 1)

    def some(self) -> list[Order]:
        """A few, of any keys."""
        return [self.next(random.choice(self._keys)) for _ in range(random.randrange(1, 16))]


class Asked:
    """Whether somebody wants the process to end."""

    def __init__(self) -> None:
        self.to_stop = False
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, self._stop)

    def _stop(self) -> None:
        self.to_stop = True


async def publish(journal: Journal, orders: list[Order], *, named: bool, delay_s: float | None = None) -> None:
    """All at once, in their order; each is acknowledged by itself, or all by one call."""

    async def one(order: Order) -> None:
        own = f"{order.key}.{order.n}" if named else None
        await apps.relay.orders.publish(order, id=own, delay_s=delay_s)
        journal.write("ack", [order])

    journal.write("try", orders)
    if not named and delay_s is None and random.random() < 0.5:
        await apps.relay.orders.publish_many(orders)
        journal.write("ack", orders)
        return
    await asyncio.gather(*(one(order) for order in orders))


async def to_the_topic(source: str, asked: Asked, *, named: bool) -> None:
    """Direct and named publishers."""
    journal = Journal(source)
    unknown, following = journal.open_orders()
    numbers = Numbers(source, following)
    if unknown:
        await publish(journal, unknown, named=True)
    while not asked.to_stop:
        if random.random() < 0.05:
            await publish(journal, [numbers.next(numbers.late)], named=named, delay_s=random.random())
        else:
            await publish(journal, numbers.some(), named=named)
        await asyncio.sleep(random.random() * 2 * PACE_S)


async def place(
    orders: list[Order], *, roll_back: bool = False, written: asyncio.Event | None = None, linger_s: float = 0.0
) -> None:
    """One transaction. A broken connection leaves open whether it happened; the table says so itself."""
    try:
        async with AsyncSession(apps.engine) as session, session.begin() as transaction:
            for order in orders:
                await session.execute(PLACED, {"key": order.key, "n": order.n})
                await apps.relay.orders.publish(order, sql=session)
            if written is not None:
                written.set()
            await asyncio.sleep(linger_s)
            if roll_back:
                await transaction.rollback()
    finally:
        if written is not None:
            written.set()


async def overlap(numbers: Numbers, key: str) -> None:
    """Two transactions of one key: the first one's row is older, and it commits last."""
    written = asyncio.Event()
    first = asyncio.ensure_future(place([numbers.next(key)], written=written, linger_s=0.1))
    await written.wait()
    ended = await asyncio.gather(place([numbers.next(key)]), first, return_exceptions=True)
    for error in ended:
        if error is not None:
            raise error


async def through_the_outbox(source: str, asked: Asked) -> None:
    """Until asked to stop."""
    numbers = Numbers(source, {})
    while not asked.to_stop:
        chance = random.random()
        try:
            if chance < 0.2:
                await overlap(numbers, f"{source}.{random.randrange(KEYS)}")
            else:
                await place(numbers.some(), roll_back=chance < 0.3)
        except (DBAPIError, InterfaceError, OSError):
            await asyncio.sleep(0.2)  # the database is away
        await asyncio.sleep(random.random() * 4 * PACE_S)


async def main(kind: str, name: str) -> None:
    asked = Asked()
    source = name if kind == "named" else f"{name}-{os.getpid()}-{int(time.time() * 1000)}"
    if kind == "outbox":
        await through_the_outbox(source, asked)
        return
    while True:
        try:
            await apps.relay.app.connect()
            break
        except (NotConnected, DurabilityError):  # the server is away, or its replica
            if asked.to_stop:
                return
            await asyncio.sleep(0.1)
    try:
        await to_the_topic(source, asked, named=kind == "named")
    finally:
        await apps.relay.app.aclose()


if __name__ == "__main__":
    (apps.DIR / "journal").mkdir(exist_ok=True)
    asyncio.run(main(*sys.argv[1:3]))

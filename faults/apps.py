"""The product under attack: two topics, five groups, an outbox, each role an app for `headrace run` or `headrace relay`.

    publishers -> orders (4 partitions) -> tally   shared, effects in Redis, publishes to `done`, rejects some
                                           bank    shared, batches, SQL: moves money between accounts, publishes to `done`
                                           ledger  ordered, effects in Redis: a list for each key
                                           books   ordered, SQL: a row for each event
    tally, bank -> done                 -> closing shared, effects in Redis, and a line in a file

Environment: HEADRACE_URL, HEADRACE_DURABILITY, FAULTS_DATABASE (SQLAlchemy URL), FAULTS_DIR (files), FAULTS_PACKING (of `orders`: none or
batch), FAULTS_MISDEED (a file whose word SIGUSR1 makes the process read: raise, hang or block). SIGUSR2: see `explain`.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Final, Literal, NamedTuple

import msgspec
from msgspec import Struct
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine

from headrace import Context, Headrace, Reject, Retry, Topic
from headrace.once import Inbox, Outbox

DIR: Final = Path(os.environ.get("FAULTS_DIR", "."))
LEASE_S: Final = 2.0
PATIENT: Final = Retry(attempts=1_000_000, first_s=0.05, max_s=0.5)
REJECTED_EVERY: Final = 50
"""Of these events `tally` rejects one; the checker knows which."""
ACCOUNTS: Final = 10


class Order(Struct):
    """Number `n` of a key, from 0 without a gap."""

    key: str
    n: int


class Done(Struct):
    """Group `by` has handled an order."""

    by: str
    key: str
    n: int


class Line(NamedTuple):
    """An app and its topics."""

    app: Headrace
    orders: Topic[Order]
    done: Topic[Done]


engine = create_async_engine(
    os.environ.get("FAULTS_DATABASE", "postgresql+asyncpg://nobody@127.0.0.1/nothing"), pool_size=20, max_overflow=20
)


def line() -> Line:
    """A fresh app. Silence is noticed soon, publishing never gives up."""
    app = Headrace(lease_s=LEASE_S, outbox=Outbox(engine))
    app.settings = msgspec.structs.replace(app.settings, connect_s=2.0, request_s=6.0, publish_wait_s=3_600.0)
    packing: Literal["none", "batch"] = "batch" if os.environ.get("FAULTS_PACKING") == "batch" else "none"
    orders = app.topic("orders", Order, key="key", partitions=4, packing=packing)
    return Line(app, orders, app.topic("done", Done, key="key"))


shared, ordered, sql, relay = line(), line(), line(), line()


class Misdeeds:
    """What the campaign makes this process's handlers do."""

    def __init__(self) -> None:
        self.raises = 0
        self.once = ""
        if path := os.environ.get("FAULTS_MISDEED"):
            signal.signal(signal.SIGUSR1, lambda *_: self.learn(Path(path).read_text()))

    def learn(self, word: str) -> None:
        """From now on."""
        self.raises, self.once = (20, "") if word == "raise" else (0, word)

    async def happen(self) -> None:
        """In the middle of a handler; one in a hundred fails without being told to."""
        if self.raises or random.random() < 0.01:
            self.raises = max(0, self.raises - 1)
            raise ValueError("a bug in a handler")
        if self.once:
            word, self.once = self.once, ""
            if word == "hang":
                await asyncio.sleep(3_600)
            elif word == "block":
                time.sleep(1.5 * LEASE_S)
        elif random.random() < 0.1:
            await asyncio.sleep(random.random() * 0.02)


misdeeds = Misdeeds()


def explain(*_: object) -> None:
    """SIGUSR2: what every task is waiting for, into the log."""
    for task in asyncio.all_tasks():
        task.print_stack()


signal.signal(signal.SIGUSR2, explain)


@shared.orders.subscribe("tally", retry=PATIENT, timeout_s=1.0)
async def tally(order: Order, ctx: Context) -> None:
    ctx.redis.hincrby(f"{{{ctx.partition}}}:tally", f"{order.key} {order.n}", 1)
    ctx.publish(shared.done, Done("tally", order.key, order.n))
    await misdeeds.happen()
    if order.n % REJECTED_EVERY == REJECTED_EVERY - 1:
        raise Reject("as agreed")


@shared.done.subscribe("closing", retry=PATIENT, timeout_s=1.0)
async def close(done: Done, ctx: Context) -> None:
    name = f"{done.by} {done.key} {done.n}"
    ctx.redis.hincrby(f"{{{ctx.partition}}}:closed", name, 1)
    with (DIR / "outside").open("a") as outside:  # at least once
        outside.write(f"{name}\n")
    await misdeeds.happen()


@ordered.orders.subscribe("ledger", ordered=True, retry=PATIENT, timeout_s=1.0)
async def keep(order: Order, ctx: Context) -> None:
    ctx.redis.rpush(f"{{{ctx.partition}}}:ledger:{order.key}", str(order.n))
    await misdeeds.happen()


TRANSFER: Final = text("INSERT INTO transfers (key, n, giver, taker) VALUES (:key, :n, :giver, :taker)")
CHANGE: Final = text("UPDATE accounts SET cents = cents + :change WHERE id = :id")
BOOK: Final = text("INSERT INTO books (key, n, worker) VALUES (:key, :n, :worker)")


def giver_and_taker(n: int) -> tuple[int, int]:
    """Between which accounts order `n` moves a cent."""
    return n % ACCOUNTS, (n * 7 + 1) % ACCOUNTS


@sql.orders.subscribe("bank", retry=PATIENT, timeout_s=3.0, inbox=Inbox(engine), batch=50, lanes=2)
async def move(orders: list[Order], contexts: list[Context]) -> None:
    session = contexts[0].sql
    changes = Counter[int]()
    for order, ctx in zip(orders, contexts, strict=True):
        giver, taker = giver_and_taker(order.n)
        changes[giver] -= 1
        changes[taker] += 1
        await session.execute(TRANSFER, {"key": order.key, "n": order.n, "giver": giver, "taker": taker})
        done = Done("bank", order.key, order.n)
        ctx.publish(
            sql.done, done, id=f"{order.key} {order.n}"
        )  # its id: also a group that begins anew publishes it once
    for account, change in sorted(changes.items()):  # in one order, or two batches lock each other out
        await session.execute(CHANGE, {"id": account, "change": change})
        if account == ACCOUNTS // 2:
            await misdeeds.happen()


@sql.orders.subscribe("books", ordered=True, retry=PATIENT, timeout_s=3.0, inbox=Inbox(engine), lanes=8)
async def book(order: Order, ctx: Context) -> None:
    await ctx.sql.execute(BOOK, {"key": order.key, "n": order.n, "worker": os.getpid()})
    await misdeeds.happen()

"""Headrace, the effect recorded with the ack.

requires:
"""

from __future__ import annotations

import asyncio
import os
import sys
import time

from msgspec import Struct

from headrace import Context, Headrace
from headrace.runtime import worker


class Number(Struct):
    """An event."""

    n: int


app = Headrace(os.environ["RIVAL_URL"])
orders = app.topic("orders", Number)


@orders.subscribe("workers")
async def handle(event: Number, ctx: Context) -> None:
    await asyncio.sleep(0.01)
    ctx.redis.hincrby("seen", str(event.n), 1)


async def publish(n: int) -> int:
    """Until something is raised; the number after the last one that was tried."""
    try:
        async with app:
            with open(os.environ["RIVAL_JOURNAL"], "a", encoding="ascii") as journal:
                while True:
                    n += 1
                    await orders.publish(Number(n - 1))
                    journal.write(f"{n - 1}\n")
                    journal.flush()
                    await asyncio.sleep(0.01)
    except Exception:
        return n


if __name__ == "__main__":
    if sys.argv[1] == "work":
        sys.exit(worker.main(app, None))
    following = int(sys.argv[2])
    while True:
        following = asyncio.run(publish(following))
        time.sleep(0.1)

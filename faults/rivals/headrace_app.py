"""Headrace, the effect recorded with the ack.

requires:
"""

from __future__ import annotations

import asyncio
import os
import sys
import time

from headrace import Context, Headrace

app = Headrace(os.environ["RIVAL_URL"])
orders = app.topic("orders", int)


@orders.subscribe("workers")
async def handle(n: int, ctx: Context) -> None:
    await asyncio.sleep(0.01)
    ctx.redis.hincrby("seen", str(n), 1)


async def publish() -> None:
    async with app:
        with open(os.environ["RIVAL_JOURNAL"], "a", encoding="ascii") as journal:
            n = int(sys.argv[2])
            while True:
                await orders.publish(n)
                journal.write(f"{n}\n")
                journal.flush()
                n += 1
                await asyncio.sleep(0.01)


if __name__ == "__main__":
    if sys.argv[1] == "work":
        from headrace.runtime import worker

        sys.exit(worker.main(app, None))
    while True:
        try:
            asyncio.run(publish())
        except Exception:
            time.sleep(0.1)

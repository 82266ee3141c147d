"""FastStream, a stream subscriber with a group.

requires: faststream[redis]==0.7.8 redis==8.1.0 hiredis==3.5.0
"""

from __future__ import annotations

import asyncio
import os
import sys

from faststream import FastStream
from faststream.redis import RedisBroker, StreamSub

from faults.rivals.journal import URL, effect, publish

broker = RedisBroker(URL)
app = FastStream(broker)


@broker.subscriber(stream=StreamSub("orders", group="workers", consumer=f"c{os.getpid()}"))
async def handle(n: int) -> None:
    await asyncio.to_thread(effect, n)


def main() -> None:
    if sys.argv[1] == "work":
        asyncio.run(app.run())
        return
    loop = asyncio.new_event_loop()
    loop.run_until_complete(broker.connect())
    publish(lambda n: loop.run_until_complete(broker.publish(n, stream="orders")))


if __name__ == "__main__":
    main()

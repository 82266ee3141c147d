"""Dramatiq with its Redis broker.

requires: dramatiq[redis]==2.2.1 redis==8.1.0
"""

from __future__ import annotations

import signal
import sys
import threading

import dramatiq
from dramatiq.brokers.redis import RedisBroker

from faults.rivals.journal import URL, effect, publish

broker = RedisBroker(url=URL)
dramatiq.set_broker(broker)


@dramatiq.actor
def handle(n: int) -> None:
    effect(n)


if __name__ == "__main__":
    if sys.argv[1] == "work":
        asked = threading.Event()
        signal.signal(signal.SIGTERM, lambda *_: asked.set())
        worker = dramatiq.Worker(broker)
        worker.start()
        while not asked.wait(0.2):
            pass
        worker.stop()
    else:
        publish(handle.send)

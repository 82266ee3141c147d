"""What all of them share, without any of them: numbers, their pace, the journal of what was acknowledged, and the effect."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator

import redis

URL = os.environ["RIVAL_URL"]
_client = redis.Redis.from_url(URL)


def effect(n: int) -> None:
    """What handling event `n` does: counts it, through a connection of its own, as a handler of such a library does."""
    time.sleep(0.01)
    while True:
        try:
            _client.hincrby("seen", str(n), 1)
            return
        except redis.RedisError:
            time.sleep(0.1)  # the handler's author has thought of that


def numbers(first: int) -> Iterator[int]:
    """A hundred a second, until SIGTERM."""
    n = first
    while True:
        yield n
        n += 1
        time.sleep(0.01)


def publish(send: Callable[[int], None]) -> None:
    """Publishes; an error is no acknowledgement, and the next number follows."""
    with open(os.environ["RIVAL_JOURNAL"], "a", encoding="ascii") as journal:
        for n in numbers(int(sys.argv[2])):
            try:
                send(n)
            except Exception:  # whatever the library raises
                time.sleep(0.1)
                continue
            journal.write(f"{n}\n")
            journal.flush()

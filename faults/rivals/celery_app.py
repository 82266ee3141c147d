"""Celery with its Redis broker.

requires: celery[redis]==5.7.0
"""

from __future__ import annotations

import sys

from celery import Celery

from faults.rivals.journal import URL, effect, publish

app = Celery("rival", broker=URL)


@app.task
def handle(n: int) -> None:
    effect(n)


if __name__ == "__main__":
    if sys.argv[1] == "work":
        app.worker_main(["worker", "--loglevel", "ERROR"])
    else:
        publish(handle.delay)

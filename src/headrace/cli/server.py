"""The server a command talks to: the one of its URL, else the embedded one, held for as long as the command runs."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

from headrace import backends
from headrace.backends.contract import Inspector
from headrace.embedded import server
from headrace.settings import Settings, at, load


@contextmanager
def open_server(args: argparse.Namespace) -> Iterator[Settings]:
    """Settings with a URL that can be connected to. Raises ConfigurationError."""
    settings = load(args.url, args.durability)
    if settings.url:
        yield settings
        return
    embedded = server.start()
    try:
        yield at(settings, embedded.url)
    finally:
        embedded.close()


def inspect(args: argparse.Namespace, work: Callable[[Inspector], Awaitable[int]]) -> int:
    """Runs `work` with an inspector of the server, and returns its exit code."""

    async def session(settings: Settings) -> int:
        inspector = await backends.inspector(settings)
        try:
            return await work(inspector)
        finally:
            await inspector.aclose()

    with open_server(args) as settings:
        return asyncio.run(session(settings))

"""Tests never sleep for luck: they wait until something is true, and say what it was if it never is."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable


def wait_until(predicate: Callable[[], object], what: str, timeout_s: float = 20.0) -> None:
    """Returns when the predicate is true. Raises AssertionError naming `what` after `timeout_s`."""
    end = time.monotonic() + timeout_s
    while not predicate():
        assert time.monotonic() < end, f"not within {timeout_s} s: {what}"
        time.sleep(0.01)


async def wait_until_async(predicate: Callable[[], Awaitable[object]], what: str, timeout_s: float = 20.0) -> None:
    """The same for a predicate that awaits."""
    end = time.monotonic() + timeout_s
    while not await predicate():
        assert time.monotonic() < end, f"not within {timeout_s} s: {what}"
        await asyncio.sleep(0.01)

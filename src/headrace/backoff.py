"""Waits that double, with their reason logged once per outage and once when it is over."""

from __future__ import annotations

import asyncio
import logging
import random

from headrace import limits

log = logging.getLogger("headrace")


class Backoff:
    """The patience of one piece of work."""

    def __init__(self, what: str) -> None:
        """`what` names the work that waits, for the log."""
        self._what = what
        self._wait_s = 0.0

    async def wait(self, error: Exception) -> None:
        """Waits after a failure; longer each time, up to `limits.retry_max_s`, with jitter so that clients do not return in step."""
        if not self._wait_s:
            log.warning("%s: %s", self._what, error)
        self._wait_s = min(max(self._wait_s * 2, limits.retry_first_s), limits.retry_max_s)
        await asyncio.sleep(self._wait_s * random.uniform(0.5, 1.0))  # noqa: S311 - not a secret

    def over(self) -> None:
        """The work goes on."""
        if self._wait_s:
            log.warning("%s: going on", self._what)
            self._wait_s = 0.0

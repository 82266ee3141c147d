"""Waits that double, with each reason logged once per outage, and a line when it is over."""

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
        self._said: set[str] = set()

    async def wait(self, error: Exception) -> None:
        """Waits after a failure; longer each time, up to `limits.retry_max_s`, with jitter so that clients do not return in step."""
        reason = str(error)
        if reason not in self._said and len(self._said) < limits.reasons_max:
            self._said.add(reason)  # the server is down, then it loads its data: two things to know, each once
            log.warning("%s: %s", self._what, reason)
        self._wait_s = min(max(self._wait_s * 2, limits.retry_first_s), limits.retry_max_s)
        await asyncio.sleep(self._wait_s * random.uniform(0.5, 1.0))  # noqa: S311 - not a secret

    def over(self) -> None:
        """The work goes on."""
        if self._wait_s:
            log.warning("%s: going on", self._what)
            self._wait_s = 0.0
            self._said.clear()

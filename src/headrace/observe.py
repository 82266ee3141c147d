"""The single telemetry seam: everything worth counting passes here, per batch, never per event."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Protocol

from headrace.retry import leaves

log = logging.getLogger("headrace")


def text_of(thing: object, write: Callable[[object], str] = str) -> str:
    """What a user's object says of itself, by `str` or `repr`. Never raises: if it cannot be had, that is said."""
    try:
        return write(thing)
    except BaseException as e:  # noqa: BLE001 - what is being told must not be lost over an object that cannot say what it is
        return f"(no text: its class raised {type(e).__name__})"


def described(error: BaseException, *, whole: bool = True) -> str:
    """`Name: message`, as it stands in a dead letter; of an ExceptionGroup, what it holds first. Never raises.

    Not `whole`: of the message its first line that is not blank, for the log.
    """
    first, *more = leaves(error)
    text = text_of(first)
    if not whole:
        text = next((line for line in text.splitlines() if line.strip()), "")
    return f"{type(first).__name__}: {text}{f' (and {len(more)} more)' if more else ''}"


class Observer(Protocol):
    """What a worker tells whoever watches it. Called on the event loop; must not block."""

    def settled(self, topic: str, group: str, handled: int, lost: int) -> None:
        """A commit was answered: `handled` of its events are settled by us, `lost` had been settled before."""

    def failed(
        self, topic: str, group: str, event_id: str, attempt: int, error: BaseException, again_in_s: float | None
    ) -> None:
        """A handler failed; None: the event goes to the dead letters."""

    def blocked(self, topic: str, group: str, handler: str, seconds: float) -> None:
        """A handler kept the event loop from running for this long."""


class LogObserver:
    """Says it in the log."""

    def settled(self, topic: str, group: str, handled: int, lost: int) -> None:  # noqa: ARG002 - others count them
        """Only losses are worth a line."""
        if lost:
            log.warning(
                "topic %s, group %s: %d events had been settled by another worker, or by an earlier try of this commit; these results are dropped",
                topic,
                group,
                lost,
            )

    def failed(
        self, topic: str, group: str, event_id: str, attempt: int, error: BaseException, again_in_s: float | None
    ) -> None:
        """One line with what happens next; the traceback at level DEBUG."""
        then = "dead-lettered" if again_in_s is None else f"again in {again_in_s:.1f} s"
        what = described(error, whole=False)[:500]
        log.warning(
            "topic %s, group %s: event %s failed (attempt %d): %s; %s", topic, group, event_id, attempt, what, then
        )
        log.debug("event %s", event_id, exc_info=error)

    def blocked(self, topic: str, group: str, handler: str, seconds: float) -> None:
        """Names the handler, and the cure."""
        log.warning(
            "topic %s, group %s: the event loop stood still for %.1f s: the process was paused, or handler %s blocks; "
            "if so make it a plain `def`, which runs in a thread, or await",
            topic,
            group,
            seconds,
            handler,
        )

"""How often, and when, a failed event is tried again."""

from __future__ import annotations

import random
from typing import Final

from msgspec import Struct

from headrace import limits
from headrace.errors import ConfigurationError, Reject, Undecodable

_FACTOR_MAX: Final = 1_000
"""Its 64th power is still a number."""


class Retry(Struct, frozen=True):
    """Exponential backoff with jitter, kept on the server: a retry survives the worker.

    The n-th retry comes `first_s * factor ** (n - 1)` seconds after the failure, at most `max_s`, give or take `jitter`
    (a fraction, so that events that failed together do not come back together).
    """

    attempts: int = 5
    """Handler calls in all; 1 means no retry. After the last the event rests in the dead letters."""
    first_s: float = 1.0
    factor: float = 2.0
    max_s: float = 3600.0
    jitter: float = 0.2
    dead: tuple[type[BaseException], ...] = ()
    """Exceptions that go straight to the dead letters, as `Reject` does; an ExceptionGroup (of a TaskGroup) does if all it holds are such."""

    def __post_init__(self) -> None:
        """Raises ConfigurationError for values that cannot be meant."""
        _expect(
            "attempts", isinstance(self.attempts, int) and self.attempts >= 1, "a whole number from 1", self.attempts
        )
        if not 0 <= self.first_s <= self.max_s <= limits.delay_s_max:
            raise ConfigurationError(
                f"Retry: expected 0 <= first_s <= max_s <= a year, got {self.first_s} and {self.max_s}"
            )
        _expect("factor", 1 <= self.factor <= _FACTOR_MAX, f"1 to {_FACTOR_MAX:,}", self.factor)
        _expect("jitter", 0 <= self.jitter <= 1, "a fraction in 0..1", self.jitter)
        exceptions = isinstance(self.dead, tuple) and all(
            isinstance(d, type) and issubclass(d, BaseException) for d in self.dead
        )
        _expect("dead", exceptions, "a tuple of exceptions, as in dead=(KeyError,)", self.dead)

    def again_in_s(self, attempt: int, error: BaseException) -> float | None:
        """Seconds until the next attempt after `attempt` failed with `error`; None: no further attempt."""
        return None if attempt >= self.attempts or self.is_final(error) else self.pause_s(attempt)

    def is_final(self, error: BaseException) -> bool:
        """Whether no further attempt can help."""
        final: tuple[type[BaseException], ...] = (Reject, Undecodable, *self.dead)
        return isinstance(error, final) or all(isinstance(e, final) for e in leaves(error))

    def pause_s(self, attempt: int) -> float:
        """Seconds between this attempt and the next."""
        delay = min(self.first_s * self.factor ** min(attempt - 1, 64), self.max_s)
        return delay * random.uniform(1 - self.jitter, 1 + self.jitter)  # noqa: S311 - not a secret


def leaves(error: BaseException) -> list[BaseException]:
    """What was raised: the error, or what an ExceptionGroup holds, at any depth."""
    found, open_ = [], [error]
    while open_:
        one = open_.pop()
        if isinstance(one, BaseExceptionGroup):
            open_ += reversed(one.exceptions)
        else:
            found.append(one)
    return found


def _expect(field: str, fine: bool, expected: str, got: object) -> None:  # noqa: FBT001 - the condition itself
    if not fine:
        raise ConfigurationError(f"Retry.{field}: expected {expected}, got {got!r}")

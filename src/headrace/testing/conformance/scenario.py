"""One scenario, how it ends, and the two ways to say that something is not as promised."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from enum import StrEnum
from typing import Any, Final

from msgspec import Struct

from headrace.backends.contract import Features
from headrace.testing.conformance.harness import Harness
from headrace.testing.conformance.stage import Stage, Violation

__all__ = ["NotRun", "Outcome", "Report", "Scenario", "Violation"]

_FLAGS: Final = ("outputs", "delay", "ordered", "replay", "ids")


class NotRun(Exception):
    """The backend lacks a feature that the scenario is about; the message names it. Not a failure, and not a pass."""


class Outcome(StrEnum):
    """How a scenario ended."""

    PASSED = "passed"
    FAILED = "failed"
    NOT_RUN = "not run"


class Report(Struct, frozen=True):
    """How one scenario ended, and why."""

    scenario: str
    outcome: Outcome
    why: str = ""


class Scenario(Struct, frozen=True):
    """A promise of the contract, tried out. Called with a harness it returns if the promise held, else raises Violation or NotRun."""

    play: Callable[[Stage], Awaitable[None]]
    needs: tuple[str, ...] = ()
    """Features without which it cannot run: `effects`, or a flag of contract.Features."""

    @property
    def name(self) -> str:
        """A name for reports."""
        return self.play.__name__

    @property
    def promise(self) -> str:
        """What it is about, in words."""
        return self.play.__doc__ or ""

    def missing(self, features: Features) -> str:
        """The first feature that it needs and that is absent; '' if there is none."""
        return next(
            (need for need in self.needs if not (features.effects if need == "effects" else getattr(features, need))),
            "",
        )

    async def __call__(self, harness: Harness) -> None:
        """Plays it, then checks that the ledger of every group balances."""
        if absent := self.missing(harness.features):
            raise NotRun(f"the backend {harness.features.name} has no {absent}")
        stage = Stage(harness)
        await self.play(stage)
        await stage.expect_balance()


def scenarios(*entries: Callable[[Stage], Awaitable[None]] | tuple[Any, ...]) -> tuple[Scenario, ...]:
    """Scenarios from functions, or from a function and the features that it needs."""
    return tuple(Scenario(e[0], tuple(e[1:])) if isinstance(e, tuple) else Scenario(e) for e in entries)

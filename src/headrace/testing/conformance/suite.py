"""All scenarios, and how to run them."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from typing import Final

from headrace.testing.conformance import (
    consume,
    delay,
    effects,
    inspect,
    leave,
    ordered,
    publish,
    retention,
    settle,
    takeover,
)
from headrace.testing.conformance.harness import HarnessFactory
from headrace.testing.conformance.scenario import NotRun, Outcome, Report, Scenario

SCENARIOS: Final[tuple[Scenario, ...]] = (
    *publish.SCENARIOS,
    *consume.SCENARIOS,
    *leave.SCENARIOS,
    *settle.SCENARIOS,
    *effects.SCENARIOS,
    *delay.SCENARIOS,
    *takeover.SCENARIOS,
    *ordered.SCENARIOS,
    *retention.SCENARIOS,
    *inspect.SCENARIOS,
)
"""Every promise of the contract that can be seen from outside."""

LONGEST_S: Final = 120.0
"""Real time after which a scenario is taken to hang."""


async def check(scenario: Scenario, harness_factory: HarnessFactory) -> None:
    """Runs one scenario on an empty server. Raises Violation, NotRun, TimeoutError, or whatever else the backend raised."""
    async with harness_factory() as harness, asyncio.timeout(LONGEST_S):
        await scenario(harness)


async def run(harness_factory: HarnessFactory, names: Collection[str] | None = None) -> Sequence[Report]:
    """Runs all scenarios, or those named, one after the other, and reports on each. Raises ValueError for an unknown name."""
    unknown = set(names or ()) - {s.name for s in SCENARIOS}
    if unknown:
        raise ValueError(
            f"names: expected some of {', '.join(s.name for s in SCENARIOS)}, got {', '.join(sorted(unknown))}"
        )
    return [await _report(s, harness_factory) for s in SCENARIOS if names is None or s.name in names]


async def _report(scenario: Scenario, harness_factory: HarnessFactory) -> Report:
    try:
        await check(scenario, harness_factory)
    except NotRun as e:
        return Report(scenario.name, Outcome.NOT_RUN, str(e))
    except Exception as e:  # noqa: BLE001 - whatever a backend raises is its failure, and the other scenarios still run
        return Report(scenario.name, Outcome.FAILED, f"{type(e).__name__}: {e}")
    return Report(scenario.name, Outcome.PASSED)

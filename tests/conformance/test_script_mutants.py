"""Each server script that is broken on purpose is caught by the scenario that is there for it, on a real server."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from headrace.backends.redis.node import load_script, load_scripts
from headrace.testing.conformance import run
from headrace.testing.conformance.scenario import Outcome
from tests.conformance.redis_harness import redis_harness
from tests.conformance.script_mutants import MUTANTS, ScriptMutant
from tests.servers import Server, require


@pytest.fixture(scope="module")
def live() -> Iterator[Server]:
    require("valkey")
    with Server("valkey") as server:
        yield server


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda m: m.name.replace(" ", "-"))
def test_caught(live: Server, mutant: ScriptMutant) -> None:
    scripts = load_scripts()
    text = scripts[mutant.script].text
    assert text.count(mutant.old) == 1, f"{mutant.name}: the script has changed; the mutant must follow"
    scripts[mutant.script] = load_script(mutant.script, text.replace(mutant.old, mutant.new))
    (report,) = asyncio.run(run(lambda: redis_harness(live, scripts), [mutant.caught_by]))
    assert report.outcome is Outcome.FAILED, f"{mutant.name}: {mutant.caught_by} did not notice"
    assert "user_script" not in report.why or mutant.name == "writes unchecked", (
        f"{mutant.name} does not even run: {report.why}"
    )

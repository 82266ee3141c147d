"""The conformance suite catches backends that are broken on purpose, and names the promise that they break."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from headrace.backends.memory import MemoryServer
from headrace.testing.conformance import Outcome, run
from tests.conformance.memory_harness import memory
from tests.conformance.mutants import MUTANTS


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda m: m.__name__)
def test_is_caught(mutant: type[MemoryServer], record_property: Callable[[str, object], None]) -> None:
    """At least one scenario fails, and by what it says, not by taking for ever."""
    reports = [r for r in asyncio.run(run(memory(mutant))) if r.outcome is Outcome.FAILED]
    record_property("caught_by", ", ".join(r.scenario for r in reports))
    print(f"{mutant.__name__}: {mutant.__doc__}", *(f"  {r.scenario}: {r.why}" for r in reports), sep="\n")
    said = [r for r in reports if not r.why.startswith("TimeoutError")]
    assert said, f"no scenario catches {mutant.__name__}: {mutant.__doc__} Write one that does."


def test_an_unbroken_server_passes() -> None:
    """What the mutants are derived from is not caught."""
    reports = asyncio.run(run(memory()))
    assert {r.outcome for r in reports} == {Outcome.PASSED}

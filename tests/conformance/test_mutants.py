"""The conformance suite catches backends that are broken on purpose, and names the promise that they break."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from headrace.backends.memory.server import MemoryServer
from headrace.testing.conformance import Outcome, run
from tests.conformance.memory_harness import memory
from tests.conformance.mutants import MUTANTS


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda m: m.__name__)
def test_is_caught(mutant: type[MemoryServer], record_property: Callable[[str, object], None]) -> None:
    """The scenario that is about the broken promise fails, by what it says and not by taking for ever."""
    failed = {r.scenario: r.why for r in asyncio.run(run(memory(mutant))) if r.outcome is Outcome.FAILED}
    record_property("caught_by", ", ".join(failed))
    by = MUTANTS[mutant]
    assert by in failed, (
        f"{by} does not catch {mutant.__name__} ({mutant.__doc__}); caught by: {', '.join(failed) or 'none'}"
    )
    assert not failed[by].startswith("TimeoutError")


def test_an_unbroken_server_passes() -> None:
    """What the mutants are derived from is not caught."""
    assert {r.outcome for r in asyncio.run(run(memory()))} == {Outcome.PASSED}

"""The Redis backend passes the conformance suite on Valkey and on Redis, and leaves no key behind that is not meant to stay."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator

import pytest

from headrace.testing.conformance import SCENARIOS, Scenario, check
from tests.conformance.redis_harness import PackedBackend, redis_harness
from tests.servers import FLAVOURS, Server, require

PERMANENT = re.compile(
    r"headrace:topics|[a-z-]+|\{[^}]+\}:(delayed|delayed:.+|retry:.+|dead:.+|group:.+|workers:.+|packed)"
)
"""Streams of the scenarios, keys their effects write, and what backends/redis/keys.py lists as permanent."""


@pytest.fixture(scope="module", params=FLAVOURS)
def live(request: pytest.FixtureRequest) -> Iterator[Server]:
    require(request.param)
    with Server(request.param) as server:
        yield server


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda s: s.name)
def test_conforms(live: Server, scenario: Scenario) -> None:
    asyncio.run(check(scenario, lambda: redis_harness(live)))
    only_known_keys_stay(live)


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda s: s.name)
def test_conforms_with_packed_events(live: Server, scenario: Scenario) -> None:
    asyncio.run(check(scenario, lambda: redis_harness(live, kind=PackedBackend)))
    only_known_keys_stay(live)


def only_known_keys_stay(live: Server) -> None:
    for raw in live.command("KEYS", "*"):
        key = raw.decode()
        assert PERMANENT.fullmatch(key) or live.command("PTTL", key) != -1, (
            f"{key} is neither permanent nor does it expire"
        )

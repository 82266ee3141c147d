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

SETTLED_TOGETHER = {
    "settles some events of an entry and looks at what they wrote": (
        "a_conflict_with_an_earlier_effect_is_refused",
        "a_mixed_batch_settles_what_is_still_ours",
        "a_value_that_is_no_integer_is_refused",
        "a_wrong_type_is_refused",
        "an_overflow_is_refused",
        "an_uncommitted_effect_leaves_no_trace",
        "an_unknown_command_is_refused",
        "commit_settles",
        "one_commit_settles_in_every_way",
        "wrong_arguments_are_refused",
    ),
    "expects events of one call with different workers, or some of them unread": (
        "earliest_begins_with_what_is_there",
        "latest_begins_with_what_comes",
        "the_inspector_shows_topics_and_groups",
        "workers_of_a_group_share",
    ),
    "asks about entries and expects events": (
        "a_range_can_be_replayed_to_one_group",
        "settled_events_are_trimmed",
        "the_inspector_reads_a_topic",
        "the_inspector_shows_who_holds_what",
    ),
    "counts the deaths of an event that starts anew once it is unpacked": (
        "an_event_that_kills_workers_ends_in_the_dead_letters",
    ),
}
"""Scenarios that presuppose an entry for each event, and why; tests/integration/test_record_batch.py has what holds instead."""
APART = frozenset(name for names in SETTLED_TOGETHER.values() for name in names)


@pytest.fixture(scope="module", params=FLAVOURS)
def live(request: pytest.FixtureRequest) -> Iterator[Server]:
    require(request.param)
    with Server(request.param) as server:
        yield server


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda s: s.name)
def test_conforms(live: Server, scenario: Scenario) -> None:
    asyncio.run(check(scenario, lambda: redis_harness(live)))
    only_known_keys_stay(live)


@pytest.mark.parametrize("scenario", [s for s in SCENARIOS if s.name not in APART], ids=lambda s: s.name)
def test_conforms_with_packed_events(live: Server, scenario: Scenario) -> None:
    asyncio.run(check(scenario, lambda: redis_harness(live, kind=PackedBackend)))
    only_known_keys_stay(live)


def test_what_is_left_out_exists() -> None:
    assert {s.name for s in SCENARIOS} >= APART


def only_known_keys_stay(live: Server) -> None:
    for raw in live.command("KEYS", "*"):
        key = raw.decode()
        assert PERMANENT.fullmatch(key) or live.command("PTTL", key) != -1, (
            f"{key} is neither permanent nor does it expire"
        )

"""Which event system the requirements ask for, with every number, and what would change the answer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from msgspec import Struct, structs

from headrace.stack.capacity import Capacity, Load, capacity, load_of
from headrace.stack.criteria import CRITERIA, KAFKA, NATS, RABBIT, REDIS, SYSTEMS, Asked, Judgement
from headrace.stack.facts import Facts
from headrace.stack.manifest import Rates, Requirements
from headrace.stack.quantity import Duration, Rate

PATTERNS: Final = {
    REDIS: "XREADGROUP, then effects, outputs and XACK in one commit: each effect happens once; "
    "retries and dead letters leave with the same commit",
    KAFKA: "consumer groups, the offset is committed after the effect: at-least-once, so handlers need an inbox or an idempotency key",
    NATS: "durable pull consumers with explicit acks after the effect: at-least-once, so handlers need an inbox or an idempotency key",
    RABBIT: "quorum queues with manual acks after the effect: at-least-once, so handlers need an inbox or an idempotency key",
}
_FACTOR_MAX: Final = 10_000.0
_STEPS: Final = 40
_YEAR_S: Final = 365 * 86_400.0


class Ranked(Struct, frozen=True):
    """A system with all that was said of it."""

    system: str
    score: float
    ruled_out: tuple[str, ...]
    """The criteria whose gates it does not pass."""
    judgements: tuple[Judgement, ...]


class Flip(Struct, frozen=True):
    """A change of the requirements that changes the answer."""

    change: str
    choice: str
    condition: str = ""
    """As `quality.events.outgrow.when` says it."""


class Advice(Struct, frozen=True):
    """The answer."""

    choice: str
    """A system, or `none` if every one is ruled out."""
    why: str
    pattern: str
    systems: tuple[Ranked, ...]
    """The best first."""
    load: Load
    capacity: Capacity
    flips: tuple[Flip, ...]
    facts: Facts


def advise(requirements: Requirements, facts: Facts) -> Advice:
    """The same answer for the same requirements and facts, always."""
    asked, systems = _judged(requirements, facts)
    choice = _choice(systems)
    return Advice(
        choice,
        _why(choice, asked, systems),
        PATTERNS.get(choice, ""),
        systems,
        asked.load,
        asked.capacity,
        tuple(_flips(requirements, facts, asked.load, choice)),
        facts,
    )


def _judged(requirements: Requirements, facts: Facts) -> tuple[Asked, tuple[Ranked, ...]]:
    load = load_of(requirements)
    asked = Asked(requirements, load, capacity(load, facts))
    said = [judgement for criterion in CRITERIA for judgement in criterion(asked)]
    ranked = []
    for system in SYSTEMS:
        own = tuple(j for j in said if j.system == system)
        ranked.append(Ranked(system, sum(j.points for j in own), tuple(j.criterion for j in own if j.gate), own))
    return asked, tuple(sorted(ranked, key=lambda r: (bool(r.ruled_out), -r.score)))


def _choice(systems: tuple[Ranked, ...]) -> str:
    return "none" if systems[0].ruled_out else systems[0].system


def _why(choice: str, asked: Asked, systems: tuple[Ranked, ...]) -> str:
    if choice == "none":
        return "; ".join(f"{r.system} fails on {' and '.join(r.ruled_out)}" for r in systems)
    needs, known = asked.capacity, set(asked.requirements.team)
    best = systems[0].judgements
    tied = [r.system for r in systems[1:] if not r.ruled_out and r.score == systems[0].score]
    first = {
        REDIS: "Consumer groups with explicit acks on Valkey (BSD-3)",
        KAFKA: "A partitioned log on disks (Apache-2.0)",
        NATS: "Replicated streams with durable consumers (Apache-2.0)",
        RABBIT: "Quorum queues with acks per message (MPL-2.0)",
    }[choice]
    parts = [first]
    parts += [j.says for j in best if j.criterion == "team" and j.points] if known else []
    if choice == REDIS:
        servers = f"{needs.servers} primaries" if needs.servers > 1 else f"one server of {asked.load.memory}"
        parts.append(
            f"{asked.load.rate} with {needs.memory} of events and {needs.cores:.2f} cores at the peak fit {servers}"
        )
    else:
        redis = next(r for r in systems if r.system == REDIS)
        parts += [f"Redis Streams: {j.says}" for j in redis.judgements if j.gate or j.points <= -1]
    if tied:
        parts.append(f"a tie with {' and '.join(tied)}: of equals the first of {', '.join(SYSTEMS)} is taken")
    return "; ".join(parts)


# What would change the answer


def _flips(requirements: Requirements, facts: Facts, load: Load, choice: str) -> list[Flip]:
    def chosen(**changes: Any) -> str:
        return _choice(_judged(structs.replace(requirements, **changes), facts)[1])

    def with_rate(factor: float) -> str:
        return chosen(rate=Rates(Rate(load.rate * factor), Rate(load.peak * factor)))

    out = []
    factor = _first(lambda f: with_rate(f) != choice, 1.0, _FACTOR_MAX)
    if factor is not None:
        peak = Rate(load.peak * factor)
        change = f"{float(f'{factor:.2g}'):,g} times the rate: {Rate(load.rate * factor)}, {peak} at the peak"
        out.append(Flip(change, with_rate(factor), f"rate.peak > {round(peak)}/s"))
    kept = max(load.retention, 3_600.0)
    longest = _first(lambda s: chosen(retention=Duration(s)) != choice, kept, _YEAR_S)
    if longest is not None:
        hours = max(round(longest / 3_600), 1)
        change = f"events kept for {Duration(longest)}"
        out.append(Flip(change, chosen(retention=Duration(longest)), f"retention > {hours}h"))
    single: dict[str, tuple[dict[str, Any], str]] = {
        "a second data centre that publishes": ({"datacenters": 2}, "datacenters > 1"),
        "no loss when a server is lost": ({"loss": "none"}, ""),
        "order per key": ({"ordering": "per-key"}, ""),
        "replay of weeks": ({"replay": "weeks"}, ""),
        "a permissive licence": ({"licence": "permissive"}, ""),
        "a team that runs Kafka": ({"team": (*requirements.team, "kafka")}, ""),
        "a team that runs NATS": ({"team": (*requirements.team, "nats")}, ""),
        "a team that runs Redis or Valkey": ({"team": (*requirements.team, "valkey")}, ""),
    }
    for change, (changes, condition) in single.items():
        other = chosen(**changes)
        if other != choice:
            out.append(Flip(change, other, condition))
    return out


def _first(flips: Callable[[float], bool], start: float, most: float) -> float | None:
    """The smallest value from `start` on at which the answer changes; None if it does not up to `most`. By halving, on a scale of factors."""
    if not flips(most):
        return None
    low, high = start, most
    for _ in range(_STEPS):
        middle = (low * high) ** 0.5
        if flips(middle):
            high = middle
        else:
            low = middle
    return high

"""The verdict over a history: what is lost, duplicated, phantom, out of order, stuck, or does not add up. Knows nothing of the product.

Anomalies are named as Jepsen names them, the workload is its queue with numbered values for each key; the accounts are its bank.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from itertools import pairwise

from msgspec import Struct, field

from faults.history import History, Pair

COLUMNS = ("lost", "duplicated", "phantom", "reordered", "stuck", "unbalanced")
EXAMPLES_MAX = 5
REJECTED_EVERY = 50
LATE = ".late"
OUTBOX = "outbox"


class Verdict(Struct):
    """How many events are wrong in which way, with examples; all zero is what was promised."""

    events: int = 0
    """In the topic."""
    handled: int = 0
    """Calls with an effect, over all groups."""
    unacknowledged: int = 0
    """In the topic although no publisher knows: legal, as long as they are handled like all others."""
    vanished: int = 0
    """Not in the topic any more, no publisher knows, but handled in SQL before a failover forgot them: legal, once."""
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(COLUMNS, 0))
    examples: list[str] = field(default_factory=list)

    def add(self, column: str, where: str, what: Iterable[object]) -> None:
        """These are wrong."""
        wrong = list(what)
        self.counts[column] += len(wrong)
        if wrong:
            shown = ", ".join(map(str, wrong[:EXAMPLES_MAX]))
            self.examples.append(f"{column}, {where}: {len(wrong)}: {shown}")

    @property
    def clean(self) -> bool:
        """Whether every promise was kept."""
        return not any(self.counts.values())


def _vanished(history: History, tried: set[Pair]) -> set[Pair]:
    """Handled in SQL, in no topic, and no publisher was told. What an outbox has committed is sent until it is acknowledged."""
    handled = {*history.books, *((key, n) for key, n, _, _ in history.transfers)}
    gone = (handled & tried) - set(history.log) - set(history.acknowledged)
    return {(key, n) for key, n in gone if not key.startswith(OUTBOX)}


def rejected(pair: Pair) -> bool:
    """Whether `tally` has agreed to reject this one."""
    return pair[1] % REJECTED_EVERY == REJECTED_EVERY - 1


def check(history: History) -> Verdict:
    """Looks at everything."""
    verdict = Verdict()
    log = Counter(history.log)
    tried = set(history.tried)
    verdict.events, verdict.unacknowledged = len(log), len(log.keys() - set(history.acknowledged))
    verdict.add("lost", "acknowledged and not in the topic", sorted(set(history.acknowledged) - log.keys()))
    verdict.add("duplicated", "in the topic", sorted((log - Counter(log.keys())).elements()))
    verdict.add("phantom", "in the topic", sorted(log.keys() - tried))
    verdict.add("stuck", "outbox", range(history.outbox))
    _order(verdict, "the topic", _by_key(history.log))

    expected = set(log)
    open_in = {(one.topic, one.group): one.open for one in history.ledgers}
    kept = {pair for pair in expected if not rejected(pair)}
    tally = Counter({_pair(name): count for name, count in history.tally.items()})
    _effects(verdict, "tally", tally, kept, open_in.get(("orders", "tally"), 0))
    _effects(verdict, "dead letters of tally", Counter(history.dead.get("tally", [])), expected - kept, 0)
    ledger = Counter((key, n) for key, numbers in history.ledger.items() for n in numbers)
    _effects(verdict, "ledger", ledger, expected, open_in.get(("orders", "ledger"), 0))
    _order(verdict, "ledger", history.ledger)
    for group, letters in history.dead.items():
        if group != "tally":
            verdict.add("lost", f"dead letters of {group}", letters)
    vanished = _vanished(history, tried) if history.forgetful else set()
    verdict.vanished = len(vanished)
    if history.sql:
        _tables(verdict, history, expected, vanished, open_in)
    _second_topic(verdict, history, kept, expected, vanished, open_in)
    _ledgers(verdict, history, len(log), vanished)
    verdict.handled = tally.total() + ledger.total() + sum(history.closed.values())
    verdict.handled += len(history.books) + len(history.transfers)
    return verdict


def _effects(
    verdict: Verdict,
    where: str,
    found: Counter[Pair],
    expected: set[Pair],
    still_open: int,
    vanished: frozenset[Pair] | set[Pair] = frozenset(),
) -> None:
    """Each of the expected once, nothing else. What is missing may be stuck rather than lost, if the group has events open."""
    missing = sorted(expected - found.keys())
    verdict.add("stuck", where, missing[:still_open])
    verdict.add("lost", where, missing[still_open:])
    verdict.add("duplicated", where, sorted((found - Counter(found.keys())).elements()))
    verdict.add("phantom", where, sorted(found.keys() - expected - vanished))


def _order(verdict: Verdict, where: str, by_key: Mapping[str, list[int]]) -> None:
    """Numbers of a key only grow; delayed events are nobody's promise. A repeat is counted as such, not here."""
    for key, numbers in by_key.items():
        once = list(dict.fromkeys(numbers))
        if not key.endswith(LATE):
            turned = [f"{key} {b} after {a}" for a, b in pairwise(once) if b < a]
            verdict.add("reordered", where, turned)


def _tables(
    verdict: Verdict,
    history: History,
    expected: set[Pair],
    vanished: set[Pair],
    open_in: Mapping[tuple[str, str], int],
) -> None:
    _effects(verdict, "books", Counter(history.books), expected, open_in.get(("orders", "books"), 0), vanished)
    _order(verdict, "books", _by_key(history.books))
    bank = Counter((key, n) for key, n, _, _ in history.transfers)
    _effects(verdict, "bank", bank, expected, open_in.get(("orders", "bank"), 0), vanished)
    due: Counter[int] = Counter()
    for _, _, giver, taker in history.transfers:
        due[giver] -= 1
        due[taker] += 1
    wrong = [f"account {a} has {cents}, not {due[a]}" for a, cents in history.accounts.items() if cents != due[a]]
    verdict.add("unbalanced", "accounts", wrong)


def _second_topic(
    verdict: Verdict,
    history: History,
    kept: set[Pair],
    expected: set[Pair],
    vanished: set[Pair],
    open_in: Mapping[tuple[str, str], int],
) -> None:
    """What handlers published with their acks: as many as they handled, and each was handled once in turn."""
    wanted = {f"tally {key} {n}" for key, n in kept}
    wanted |= {f"bank {key} {n}" for key, n in expected} if history.sql else set()
    entries = Counter(history.done)
    by_group = {"tally": open_in.get(("orders", "tally"), 0), "bank": open_in.get(("orders", "bank"), 0)}
    for group, still_open in by_group.items():
        missing = sorted(name for name in wanted - entries.keys() if name.startswith(group))
        verdict.add("stuck", f"published by {group}", missing[:still_open])
        verdict.add("lost", f"published by {group}", missing[still_open:])
    verdict.add("duplicated", "published by handlers", sorted((entries - Counter(entries.keys())).elements()))
    verdict.add(
        "phantom", "published by handlers", sorted(entries.keys() - wanted - {f"bank {key} {n}" for key, n in vanished})
    )
    closed = Counter(history.closed)
    missing = sorted(entries.keys() - closed.keys())
    still_open = open_in.get(("done", "closing"), 0)
    verdict.add("stuck", "closing", missing[:still_open])
    verdict.add("lost", "closing", missing[still_open:])
    verdict.add("duplicated", "closing", sorted((closed - Counter(closed.keys())).elements()))
    verdict.add("phantom", "closing", sorted(closed.keys() - entries.keys()))
    verdict.add("lost", "lines of closing", sorted(closed.keys() - set(history.outside)))


def _ledgers(verdict: Verdict, history: History, events: int, vanished: set[Pair]) -> None:
    """What the product says of itself agrees with what was found."""
    found = {
        ("orders", "tally"): (events, len(history.tally), len(history.dead.get("tally", []))),
        ("orders", "ledger"): (events, sum(map(len, history.ledger.values())), 0),
        ("done", "closing"): (len(history.done), len(history.closed), 0),
    }
    if history.sql:
        found["orders", "books"] = (events, sum(pair not in vanished for pair in history.books), 0)
        found["orders", "bank"] = (events, sum((key, n) not in vanished for key, n, _, _ in history.transfers), 0)
    said = {(one.topic, one.group): (one.published, one.handled - one.replayed, one.dead) for one in history.ledgers}
    wrong = [
        f"{topic}/{group} says (published, handled, dead) = {said.get((topic, group))}, found {counts}"
        for (topic, group), counts in found.items()
        if said.get((topic, group)) != counts
    ]
    verdict.add("unbalanced", "what the product says", wrong)
    verdict.add(
        "unbalanced", "missing", [f"{one.topic}/{one.group}: {one.missing}" for one in history.ledgers if one.missing]
    )


def _pair(name: str) -> Pair:
    key, _, n = name.rpartition(" ")
    return key, int(n)


def _by_key(pairs: Iterable[Pair]) -> dict[str, list[int]]:
    out: dict[str, list[int]] = {}
    for key, n in pairs:
        out.setdefault(key, []).append(n)
    return out

"""The checker of the fault campaign notices each thing that can be wrong in a history, and nothing in one that is right."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from faults.checker import COLUMNS, Verdict, check, rejected
from faults.history import History, Ledger

EVENTS = [(key, n) for n in range(60) for key in ("a", "b")]


def ledger(topic: str, group: str, published: int, handled: int, dead: int = 0) -> Ledger:
    return Ledger(topic, group, published, 0, handled, dead, 0, 0, 0, 0, 0)


def right() -> History:
    """What a round without a fault leaves."""
    kept = [pair for pair in EVENTS if not rejected(pair)]
    done = [f"tally {key} {n}" for key, n in kept] + [f"bank {key} {n}" for key, n in EVENTS]
    accounts = dict.fromkeys(range(10), 0)
    transfers = [(key, n, n % 10, (n * 7 + 1) % 10) for key, n in EVENTS]
    for _, _, giver, taker in transfers:
        accounts[giver] -= 1
        accounts[taker] += 1
    return History(
        tried=[*EVENTS, ("a", 60)],
        acknowledged=list(EVENTS),
        log=list(EVENTS),
        done=done,
        tally={f"{key} {n}": 1 for key, n in kept},
        closed=dict.fromkeys(done, 1),
        ledger={key: list(range(60)) for key in "ab"},
        books=list(EVENTS),
        booked=[],
        transfers=transfers,
        accounts=accounts,
        outside=[*done, done[0]],
        dead={"tally": [pair for pair in EVENTS if rejected(pair)]},
        outbox=0,
        ledgers=[
            ledger("orders", "tally", 120, len(kept), 120 - len(kept)),
            ledger("orders", "ledger", 120, 120),
            ledger("orders", "bank", 120, 120),
            ledger("orders", "books", 120, 120),
            ledger("done", "closing", len(done), len(done)),
        ],
    )


def test_a_right_history_is_clean() -> None:
    verdict = check(right())
    assert verdict.clean, verdict.examples
    assert (verdict.events, verdict.unacknowledged) == (120, 0)


def test_an_event_that_nobody_acknowledged_may_be_there() -> None:
    history = right()
    history.acknowledged.remove(("a", 5))
    verdict = check(history)
    assert verdict.clean
    assert verdict.unacknowledged == 1


def swap(numbers: list[int]) -> None:
    numbers[3], numbers[4] = numbers[4], numbers[3]


Change = Callable[[History], object]
WRONG: dict[str, tuple[str, Change]] = {
    "acknowledged, not in the topic": ("lost", lambda h: h.log.remove(("a", 1))),
    "not handled by tally": ("lost", lambda h: h.tally.pop("a 1")),
    "not handled by ledger": ("lost", lambda h: h.ledger["a"].remove(1)),
    "not handled by books": ("lost", lambda h: h.books.remove(("a", 1))),
    "not handled by bank": ("lost", lambda h: h.transfers.pop()),
    "not published with the ack": ("lost", lambda h: h.done.remove("tally a 1")),
    "not handled by closing": ("lost", lambda h: h.closed.pop("bank a 1")),
    "not written to the file": ("lost", lambda h: h.outside.remove("bank a 1")),
    "in the dead letters without a reason": ("lost", lambda h: h.dead.setdefault("books", []).append(("a", 1))),
    "a rejected one that is not dead": ("lost", lambda h: h.dead["tally"].pop()),
    "twice in the topic": ("duplicated", lambda h: h.log.append(("a", 59))),
    "twice by tally": ("duplicated", lambda h: h.tally.update({"a 1": 2})),
    "twice by ledger": ("duplicated", lambda h: h.ledger["a"].append(59)),
    "twice by books": ("duplicated", lambda h: h.books.append(("a", 59))),
    "twice by bank": ("duplicated", lambda h: h.transfers.append(("a", 1, 1, 8))),
    "twice published": ("duplicated", lambda h: h.done.append("tally a 1")),
    "twice by closing": ("duplicated", lambda h: h.closed.update({"tally a 1": 2})),
    "nobody published it": ("phantom", lambda h: h.log.append(("c", 0))),
    "rolled back and handled": ("phantom", lambda h: h.books.append(("a", 60))),
    "rejected and handled": ("phantom", lambda h: h.tally.update({"a 49": 1})),
    "out of order in the topic": ("reordered", lambda h: h.log.append(h.log.pop(0))),
    "out of order in ledger": ("reordered", lambda h: swap(h.ledger["b"])),
    "out of order in books": ("reordered", lambda h: h.books.append(h.books.pop(0))),
    "left in the outbox": ("stuck", lambda h: setattr(h, "outbox", 3)),
    "money appears": ("unbalanced", lambda h: h.accounts.update({3: 1_000})),
    "the product miscounts": ("unbalanced", lambda h: setattr(h.ledgers[0], "handled", 1)),
    "the product misses one": ("unbalanced", lambda h: setattr(h.ledgers[1], "missing", 1)),
}


@pytest.mark.parametrize("what", WRONG, ids=lambda what: what.replace(" ", "-"))
def test_what_is_wrong_is_noticed(what: str) -> None:
    column, change = WRONG[what]
    history = right()
    change(history)
    verdict = check(history)
    assert verdict.counts[column] > 0, verdict.counts
    assert set(verdict.counts) == set(COLUMNS)


def test_what_a_failover_forgot_before_any_publisher_was_told_may_be_handled_once_in_sql() -> None:
    def played(key: str, *, forgetful: bool = True, times: int = 1) -> Verdict:
        history = right()
        history.forgetful = forgetful
        history.tried.append((key, 60))
        history.books += [(key, 60)] * times
        return check(history)

    assert played("a").clean
    assert played("a").vanished == 1
    assert played("a", times=2).counts["duplicated"] == 1
    assert played("a", forgetful=False).counts["phantom"] == 1, "one server forgets nothing that was read"
    assert played("outbox0").counts["phantom"] == 1, "what was rolled back is nobody's"


def test_what_a_group_still_has_open_is_stuck_and_not_lost() -> None:
    history = right()
    history.tally.pop("a 1")
    history.done.remove("tally a 1")
    history.closed.pop("tally a 1")
    history.ledgers[0] = ledger("orders", "tally", 120, 117, 2)
    history.ledgers[0].pending = 1
    history.ledgers[4] = ledger("done", "closing", 237, 237)
    verdict = check(history)
    assert (verdict.counts["stuck"], verdict.counts["lost"]) == (2, 0), verdict.examples

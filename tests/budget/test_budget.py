"""An event may not become dearer unnoticed: counts per event against those recorded. They do not depend on the machine's speed."""

from __future__ import annotations

import msgspec
import pytest

from tests.absent import not_run
from tests.budget.count import PATHS, Cost, measure
from tests.budget.figures import RECORD, VERSION, judge, load
from tests.servers import require

LATER = 'python -m tests.budget --reason "why'
MEASURES = ("instructions", "commands", "bytes_in", "bytes_out")


@pytest.mark.parametrize("path", PATHS)
def test_an_event_costs_what_it_did(path: str) -> None:
    require("valkey")
    recorded = load().get(VERSION)
    if recorded is None:
        not_run(f"budget figures for Python {VERSION}", f"none are recorded; record them with {RECORD}")
    assert path in recorded.costs, f"no figures for {path!r}; record them with {RECORD}"
    if why := judge(path, measure(path), recorded.costs[path]):
        pytest.fail(why, pytrace=False)


def test_the_count_is_the_same_again() -> None:
    require("valkey")
    first, second = (measure("consume, an output each, packed") for _ in range(2))
    for measured in MEASURES:
        assert getattr(second, measured) == pytest.approx(getattr(first, measured), rel=0.01), measured


def test_what_grew_is_named() -> None:
    before = Cost(100.0, {"pump.py Pump._run_lane": 60.0, "codec.py Codec.decode": 40.0}, 1.0, 10.0, 200.0)
    more = Cost(120.0, {"codec.py Codec.decode": 62.0, "pump.py Pump._run_lane": 58.0}, 1.0, 10.0, 200.0)
    assert not judge("consume", before, before)
    why = judge("consume", more, before)
    assert "instructions 100 -> 120" in why
    assert "codec.py Codec.decode: 40 -> 62" in why
    assert "_run_lane" not in why, "it did not grow"
    assert LATER in why


@pytest.mark.parametrize("measured", MEASURES)
def test_each_measure_has_the_same_patience(measured: str) -> None:
    """Small figures too: what is done once for a batch of 500 is a hundredth of a command per event."""
    before = Cost(200.0, {}, 0.01, 25.0, 250.0)
    grown = [
        msgspec.structs.replace(before, **{measured: getattr(before, measured) * factor}) for factor in (1.14, 1.16)
    ]
    assert not judge("consume", grown[0], before)
    assert f"{measured} " in judge("consume", grown[1], before)

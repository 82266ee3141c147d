"""An event may not become dearer unnoticed: counts per event against those recorded. They do not depend on the machine's speed."""

from __future__ import annotations

import pytest

from tests.absent import not_run
from tests.budget.count import PATHS, Cost, measure
from tests.budget.figures import RECORD, VERSION, judge, load
from tests.servers import require


@pytest.mark.parametrize("path", PATHS)
def test_an_event_costs_what_it_did(path: str) -> None:
    require("valkey")
    recorded = load().costs.get(VERSION)
    if recorded is None:
        not_run(f"budget figures for Python {VERSION}", f"none are recorded; record them with {RECORD}")
    assert path in recorded, f"no figures for {path!r}; record them with {RECORD}"
    assert not (why := judge(path, measure(path), recorded[path])), why


def test_what_grew_is_named() -> None:
    before = Cost(100.0, {"pump.py Pump._run_lane": 60.0, "codec.py Codec.decode": 40.0}, 1.0, 10.0, 200.0)
    more = Cost(120.0, {"codec.py Codec.decode": 62.0, "pump.py Pump._run_lane": 58.0}, 1.0, 10.0, 200.0)
    assert not judge("consume", before, before)
    why = judge("consume", more, before)
    assert "instructions 100 -> 120" in why
    assert why.index("codec.py Codec.decode: 40 -> 62") < why.index("pump.py Pump._run_lane")
    assert "--reason" in why
    assert "commands 1 -> 2" in judge("consume", Cost(100.0, {}, 2.0, 10.0, 200.0), before)

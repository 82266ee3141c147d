"""Each claim that the lint holds against the facts: found where it is false, and quiet where it is true."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml

from headrace.stack import claims, facts, finding, manifest

STREAM = {
    "name": "orders",
    "partitions": 4,
    "key": "customer",
    "retention": {"maxlen": 10_000_000, "maxage": "6h"},
    "group": "billing",
    "consumer": {"ordered": True, "deadLetter": "{orders}:dead:billing"},
}
REQUIRED = {"rate": {"avg": "100/s"}, "payload": "500B", "retention": "6h", "ordering": "per-key"}


def found(folder: Path, changes: dict[str, Any]) -> list[tuple[str, str]]:
    """Codes and severities, of a manifest in which these paths are changed."""
    stream: dict[str, Any] = copy.deepcopy(STREAM)
    whole: dict[str, Any] = {
        "requirements": copy.deepcopy(REQUIRED),
        "quality": {
            "events": {
                "type": "redis-streams",
                "why": "a server that the team runs",
                "server": {"engine": "valkey", "maxmemory": "8GiB"},
                "streams": [stream],
            }
        },
    }
    roots = {"requirements": whole["requirements"], "events": whole["quality"]["events"], "stream": stream}
    for path, value in changes.items():
        *way, last = path.split(".")
        at: Any = roots[way[0]]
        for word in way[1:]:
            at = at.setdefault(word, {})
        if value is None:
            del at[last]
        else:
            at[last] = value
    (folder / "stack.yaml").write_text(yaml.safe_dump(whole))
    return [(one.code, one.severity) for one in claims.lint(manifest.load(folder / "stack.yaml"), facts.load())]


CASES = [
    ({}, []),
    ({"events.delivery": "exactly-once"}, [("HR301", "error")]),
    ({"events.why": "XACK gives us exactly-once, in general"}, [("HR301", "error")]),
    ({"events.why": "exactly-once effects by one commit"}, []),
    ({"events.why": "exactly-once effects by one commit", "events.effects": "none"}, [("HR301", "error")]),
    ({"events.why": "open source and fast", "events.server": None}, [("HR302", "warning")]),
    ({"events.why": "open source, by Valkey", "events.server": None}, []),
    ({"events.why": "open source and fast", "events.server.engine": "redis"}, [("HR302", "error")]),
    ({"events.why": "open source", "events.server": {"engine": "redis", "minVersion": "7.2"}}, []),
    ({"requirements.rate": {"avg": "20000/s"}, "stream.retention.maxlen": 500_000_000}, [("HR303", "error")]),
    ({"events.server.maxmemory": "1400MiB"}, [("HR303", "error")]),
    ({"events.server.maxmemory": "1500MiB"}, []),
    ({"events.server.maxmemory": "2GiB", "stream.retention.maxage": "1d"}, [("HR303", "warning")]),
    ({"stream.retention.maxage": "1d"}, []),
    ({"requirements.ordering": "global", "stream.consumer.concurrency": 1}, [("HR304", "error")]),
    ({"requirements.ordering": "global", "stream.partitions": 1}, [("HR304", "error")]),
    ({"requirements.ordering": "global", "stream.partitions": 1, "stream.consumer.concurrency": 1}, []),
    ({"requirements.datacenters": 3}, [("HR315", "warning")]),
    ({"requirements.payload": "5MB", "events.type": "kafka"}, [("HR315", "warning")]),
    ({"stream.key": None}, [("HR304", "error")]),
    ({"stream.consumer.ordered": False}, [("HR304", "error")]),
    ({"stream.consumer.ordered": False, "requirements.ordering": "none"}, []),
    ({"stream.consumer.ordered": False, "stream.consumer.concurrency": 1, "stream.partitions": 1}, []),
    ({"stream.retention": None}, [("HR305", "error")]),
    ({"stream.retention": None, "stream.role": ["consume"]}, []),
    ({"stream.consumer.deadLetter": None}, [("HR306", "error")]),
    ({"stream.consumer.minIdle": "30s", "stream.consumer.timeout": "30s"}, [("HR307", "error")]),
    ({"stream.consumer.minIdle": "31s", "stream.consumer.timeout": "30s"}, []),
    ({"events.server.maxmemoryPolicy": "allkeys-lru"}, [("HR308", "error")]),
    ({"events.server.maxmemoryPolicy": "volatile-lru"}, []),
    ({"events.server.sharedWithCache": True}, [("HR308", "warning")]),
    ({"events.scaling": {"minReplicas": 0, "triggers": ["lag"]}}, [("HR310", "error")]),
    ({"events.scaling": {"minReplicas": 0, "triggers": ["lag", "pending"]}}, []),
    ({"events.scaling": {"minReplicas": 1, "triggers": ["lag"]}}, []),
    ({"stream.retention.maxage": "5h"}, [("HR312", "error")]),
    ({"stream.retention.maxlen": 500_000}, [("HR312", "error")]),
    ({"stream.retention.maxlen": 540_000}, []),
    ({"events.outgrow": {"to": "kafka", "when": ["mood > 3"]}}, [("HR313", "error")]),
    ({"events.outgrow": {"to": "kafka", "when": ["memory > 12"]}}, [("HR313", "error")]),
    ({"events.outgrow": {"to": "kafka", "when": ["memory > 4GiB", "rate.peak > 9000/s"]}}, []),
]


@pytest.mark.parametrize(("changes", "expected"), CASES)
def test_what_is_not_so_is_found(tmp_path: Path, changes: dict[str, Any], expected: list[tuple[str, str]]) -> None:
    assert found(tmp_path, changes) == expected


def test_every_code_is_tried() -> None:
    in_code = {"HR309", "HR311", "HR314"}
    assert {code for _, codes in CASES for code, _ in codes} | in_code == set(finding.TITLES)

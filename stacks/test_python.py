"""The Python services: from nothing to passing tests, by the commands of their README."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from stacks.conftest import run

ORDERED = """
metadata: {name: x}
requirements: {rate: {avg: 2000/s}, ordering: per-key}
quality: {events: {type: redis-streams, why: because we run it already}}
"""


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("kind", "text"), [("python-worker", ""), ("python-fastapi", ORDERED)], ids=["worker", "fastapi, in order"]
)
def test_a_generated_service_passes_its_tests_the_first_time(
    tmp_path: Path, wheels: Path, tool: Path, kind: str, text: str
) -> None:
    (tmp_path / "given.yaml").write_text(text)
    run([tool, "new", "shop", "--type", kind, *(("--stack", "given.yaml") if text else ())], tmp_path)
    shop = tmp_path / "shop"
    tested = run(["make", "test"], shop, PIP_FIND_LINKS=str(wheels))
    assert " passed" in tested, tested
    assert " skipped" not in tested, tested
    run(["make", "check"], shop, PIP_FIND_LINKS=str(wheels))
    assert json.loads(run([tool, "stack", "lint", "--format", "json"], shop)) == []

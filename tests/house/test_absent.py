"""What did not run is named, with how many tests it concerns."""

from __future__ import annotations

import pytest

from tests.absent import not_run, skipped


def report(reason: str) -> pytest.TestReport:
    where = ("tests/test_it.py", 7, f"Skipped: {reason}")
    return pytest.TestReport("tests/test_it.py::test_it", where, {}, "skipped", where, "setup")


def test_not_run_skips_and_names_the_program() -> None:
    with pytest.raises(pytest.skip.Exception, match=r"^not run: redis-server 7\.0: not on PATH$"):
        not_run("redis-server 7.0", "not on PATH")


def test_each_reason_is_one_line() -> None:
    reports = [report("not run: redis-server 7.0: not on PATH"), report("no such package")]
    assert skipped([*reports, reports[0]]) == [
        "NOT RUN: no such package (1 test)",
        "NOT RUN: redis-server 7.0: not on PATH (2 tests)",
    ]


def test_a_full_run_is_silent() -> None:
    assert skipped([]) == []

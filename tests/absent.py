"""A test whose program is absent did not run, and that is neither a pass nor a detail: the end of the run says so in red."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import NoReturn

import pytest

PREFIX = "not run: "


def not_run(program: str, reason: str) -> NoReturn:
    """Ends this test or fixture as not run, for want of a program (`redis-server 7.0`) and because of this (`not on PATH`)."""
    pytest.skip(f"{PREFIX}{program}: {reason}")


def skipped(reports: Iterable[pytest.TestReport | pytest.CollectReport]) -> list[str]:
    """One line for each reason, with how many tests it kept from running. Every skip counts, whichever way it was made."""
    counts: Counter[str] = Counter()
    for report in reports:
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        counts[reason.removeprefix("Skipped: ").removeprefix(PREFIX)] += 1
    return [
        f"NOT RUN: {reason} ({count} {'test' if count == 1 else 'tests'})" for reason, count in sorted(counts.items())
    ]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """A run in which a test was skipped is not a full one, and says so."""
    lines = skipped(terminalreporter.stats.get("skipped", ()))
    if lines:
        terminalreporter.section("NOT RUN", sep="!", red=True, bold=True)
        for line in lines:
            terminalreporter.line(line, red=True)

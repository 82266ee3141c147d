"""What every test has: the servers, and a loud list of what could not run for want of a program."""

from __future__ import annotations

import pytest

pytest_plugins = ["tests.servers"]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """A test that needs an absent program is skipped with "not run: ..."; such a run is not a full one, and says so."""
    absent: dict[str, int] = {}
    for report in terminalreporter.stats.get("skipped", ()):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        if "not run" in reason.lower():
            absent[reason.removeprefix("Skipped: ")] = absent.get(reason.removeprefix("Skipped: "), 0) + 1
    if absent:
        terminalreporter.section("NOT RUN", sep="!", red=True, bold=True)
        for reason, count in sorted(absent.items()):
            terminalreporter.line(f"{count} tests {reason}")

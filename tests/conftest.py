"""What every test has: the servers, and at the end a loud list of what did not run."""

from __future__ import annotations

import signal

import pytest

from tests.absent import skipped

pytest_plugins = ["tests.servers", "tests.postgres"]

if (
    signal.getsignal(signal.SIGINT) is signal.SIG_IGN
):  # as in the background of a shell; the programs that tests interrupt would inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """A run in which a test was skipped is not a full one, and says so."""
    lines = skipped(terminalreporter.stats.get("skipped", ()))
    if lines:
        terminalreporter.section("NOT RUN", sep="!", red=True, bold=True)
        for line in lines:
            terminalreporter.line(line, red=True)

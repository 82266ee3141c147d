"""The supervisor's patience with children that stop."""

from __future__ import annotations

import time
from typing import Any

import pytest

from headrace import limits
from headrace.runtime import supervisor


class Process:
    """Ends so many seconds after it was asked to."""

    def __init__(self, needs_s: float) -> None:
        self._needs_s = needs_s
        self._asked = 0.0
        self.killed = False

    def poll(self) -> int | None:
        return 0 if self.killed or (self._asked and time.monotonic() > self._asked + self._needs_s) else None

    def send_signal(self, _: int) -> None:
        self._asked = time.monotonic()

    def kill(self) -> None:
        self.killed = True


@pytest.mark.parametrize("hangs", [False, True])
def test_a_child_has_time_for_its_handlers_and_to_hand_back(monkeypatch: pytest.MonkeyPatch, *, hangs: bool) -> None:
    monkeypatch.setattr(limits, "stop_s", 0.25)
    monkeypatch.setattr(limits, "leave_s", 0.3)
    monkeypatch.setattr(limits, "abandon_s", 0.05)
    process: Any = Process(60.0 if hangs else limits.stop_s + limits.leave_s)
    child = object.__new__(supervisor._Child)
    child.process, child.pipe = process, -1
    supervisor._stop([child], [15])
    assert process.killed == hangs

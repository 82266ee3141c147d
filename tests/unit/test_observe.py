"""What operators read in the log says who, what and what to do; every message can be rendered."""

from __future__ import annotations

import logging

import pytest

from headrace.observe import LogObserver


def test_every_message_is_rendered(caplog: pytest.LogCaptureFixture) -> None:
    observer = LogObserver()
    with caplog.at_level(logging.DEBUG, "headrace"):
        observer.settled("orders", "billing", 3, 0)
        observer.settled("orders", "billing", 3, 2)
        observer.failed("orders", "billing", "o-1", 2, ValueError("no"), 0.5)
        observer.failed("orders", "billing", "o-1", 5, ValueError("no"), None)
        observer.blocked("orders", "billing", "shop.charge", 2.25)
    said = "\n".join(record.getMessage() for record in caplog.records)
    assert "topic orders, group billing: 2 events had been settled by another worker" in said
    assert "o-1" in said
    assert "ValueError: no" in said
    assert "stood still for 2.2 s: the process was paused, or handler shop.charge blocks" in said

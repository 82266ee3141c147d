"""A stage per test, on a durable server of each flavour."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from headrace.testing.faults import Proxy
from tests.faults.stage import Stage
from tests.servers import Server, require


@pytest.fixture
def stage(server: Server, tmp_path: Path) -> Iterator[Stage]:
    """On each flavour: for faults whose outcome the server's own code decides."""
    it = Stage(server, tmp_path)
    yield it
    it.close()


@pytest.fixture
def valkey_stage(tmp_path: Path) -> Iterator[Stage]:
    """On Valkey alone: for faults of the runtime."""
    require("valkey")
    with Server("valkey") as server:
        it = Stage(server, tmp_path)
        yield it
        it.close()


@pytest.fixture
def proxy(stage: Stage) -> Iterator[Proxy]:
    """Before the stage's server."""
    with Proxy(stage.server.url) as it:
        yield it

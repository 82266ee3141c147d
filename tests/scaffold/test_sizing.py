"""What the topics of a generated service keep is what is required, and fits into the server that is generated with them."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import pytest

from headrace import ConfigurationError
from headrace.scaffold import generate, service
from headrace.stack import facts, manifest
from headrace.stack.capacity import capacity, load_of

TODAY = dt.date(2026, 11, 28)


def described(folder: Path, requirements: str) -> service.Service:
    (folder / "given.yaml").write_text(
        f"requirements: {requirements}\nquality: {{events: {{type: redis-streams, why: because we run it already}}}}\n"
    )
    read = manifest.load(folder / "given.yaml")
    return service.describe("shop", "python-worker", "redis-streams", read, TODAY)


@pytest.mark.parametrize("ordering", ["none", "per-key"])
@pytest.mark.parametrize(
    "requirements",
    [
        "",
        "rate: {avg: 500/s}, payload: 600B, retention: 6h, ",
        "rate: {avg: 2000/s}, retention: 30min, ",
        "rate: {avg: 20/s}, payload: 1KB, retention: 7d, ",
    ],
)
def test_what_topics_keep_is_what_is_required_and_fits_into_the_server(
    tmp_path: Path, requirements: str, ordering: str
) -> None:
    made = described(tmp_path, f"{{{requirements}ordering: {ordering}}}")
    load = load_of(made.requirements)
    server, (orders, accepted) = made.decided.server, made.decided.streams
    assert server is not None
    assert server.maxmemory is not None
    most = [s.retention.maxlen * s.partitions for s in (orders, accepted) if s.retention and s.retention.maxlen]
    assert sum(most) * facts.load().memory_bytes(load.payload) <= 0.8 * server.maxmemory
    assert most[0] >= 1.2 * capacity(load, facts.load()).events_kept
    assert most[1] >= 1.2 * load.rate * load.outage
    assert orders.retention is not None
    assert orders.retention.maxage == (made.requirements.retention or 86_400)
    files = {path: file.data.decode() for path, file in generate.rendered(made).files.items()}
    for path in ("compose.yaml", "deploy/events.yaml"):
        assert f"--maxmemory {int(server.maxmemory)}" in files[path]
    decision = files["docs/adr/0001-events.md"]
    assert f"| topic orders | {orders.partitions} partition" in decision
    assert "| partitions |" not in decision
    assert f"| {server.maxmemory}, for all topics together |" in decision


def test_publishers_do_not_wait_for_what_is_only_kept_for_replay(tmp_path: Path) -> None:
    """At the cap only what nobody needs makes room: what is kept of it has to be less."""
    topics = generate.rendered(described(tmp_path, "{rate: {avg: 500/s}, payload: 100B, retention: 1d}")).files[
        "src/shop/topics.py"
    ]
    assert b"cap_events=67500000, retain_events=54000000" in topics.data


def test_requirements_that_no_number_of_partitions_meets_are_refused_with_the_advice(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigurationError, match=r"ask for [\d,]+ partitions, and a topic has at most 1,024\. The advice is kafka: "
    ):
        described(tmp_path, "{rate: {avg: 9000000/s}, ordering: per-key}")


def test_one_order_over_all_is_kept_by_one_handler_at_a_time(tmp_path: Path) -> None:
    topics = generate.rendered(described(tmp_path, "{ordering: global}")).files["src/shop/topics.py"].data
    assert b"ORDERED = True" in topics
    assert b"LANES = 1\n" in topics
    assert b"partitions=" not in topics

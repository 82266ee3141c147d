"""The gate, on real servers that are set up badly on purpose."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from headrace.backends.redis import durability
from headrace.backends.redis.client import Client
from headrace.backends.redis.durability import Report, enforce, examine
from headrace.errors import DurabilityError
from headrace.settings import Durability, Settings
from tests.servers import Server, wait_for

LEVELS = tuple(Durability)


def report_of(url: str, level: Durability = Durability.FSYNC, replicas: int = 1) -> Report:
    """Examines a server as a program of this level would."""

    async def run() -> Report:
        settings = Settings(url=url, durability=level, replicas=replicas)
        client = Client(settings)
        try:
            return await examine(client, settings)
        finally:
            await client.aclose()

    return asyncio.run(run())


def refusal(report: Report) -> str:
    """The one line with which the gate refuses."""
    with pytest.raises(DurabilityError) as caught:
        enforce(report)
    text = str(caught.value)
    assert "\n" not in text
    return text


def verdict(report: Report, name: str) -> tuple[bool, str]:
    """Whether the one finding of this name is ok, and what it is if not."""
    (finding,) = [f for f in report.findings if f.name == name]
    assert finding.ok is (finding.fix == "")
    return finding.ok, finding.severity


@pytest.fixture
def replicated(flavour: str) -> Iterator[tuple[Server, Server]]:
    """A primary and a replica that follows it."""
    with ExitStack() as stack:
        primary = stack.enter_context(Server(flavour, tcp=True, repl_diskless_sync_delay=0))
        replica = stack.enter_context(Server(flavour, replicaof=f"127.0.0.1 {primary.port}"))
        wait_for(lambda: b"state=online" in primary.command("INFO", "replication"), "the replica follows", 20)
        yield primary, replica


def test_a_durable_server_passes(server: Server) -> None:
    report = report_of(server.url)
    enforce(report)
    assert report.violations == ()
    assert (report.server, report.mode, report.role, report.level) == (server.flavour, "standalone", "primary", "fsync")
    assert report.version[0].isdigit()
    assert "loses nothing" in report.loss_window


@pytest.mark.parametrize("level", [Durability.FSYNC, Durability.QUORUM])
def test_a_server_as_installed_is_refused_and_the_named_fix_repairs_it(flavour: str, level: Durability) -> None:
    with Server(flavour, appendonly="no", appendfsync="everysec") as server:
        text = refusal(report_of(server.url, level))
        assert f"appendonly is no (nothing is written to disk), durability {level.value!r} needs yes" in text
        assert 'durability="relaxed" or HEADRACE_DURABILITY=relaxed' in text
        command = text.partition("fix: ")[2].partition(";")[0]
        assert command == "CONFIG SET appendonly yes appendfsync always"
        server.command(*command.split())
        if level is Durability.FSYNC:
            enforce(report_of(server.url, level))
        else:
            assert "replicas is 0" in refusal(report_of(server.url, level))


@pytest.mark.parametrize(
    "bad", [("appendfsync", "everysec"), ("appendfsync", "no"), ("no-appendfsync-on-rewrite", "yes")]
)
def test_each_setting_that_weakens_the_log_is_a_violation(server: Server, bad: tuple[str, str]) -> None:
    server.command("CONFIG", "SET", *bad)
    report = report_of(server.url)
    assert [f.name for f in report.violations] == [bad[0]]
    assert f"{bad[0]} is {bad[1]}" in refusal(report)
    relaxed = report_of(server.url, Durability.RELAXED)
    enforce(relaxed)


def test_relaxed_starts_anywhere_and_says_what_may_be_lost(flavour: str) -> None:
    with Server(flavour, appendonly="no", appendfsync="everysec", save="3600 1") as server:
        report = report_of(server.url, Durability.RELAXED)
        enforce(report)
        assert verdict(report, "appendonly") == (False, "warning")
        assert "snapshots only, save 3600 1" in next(f.found for f in report.warnings if f.name == "appendonly")
        assert "everything since its last snapshot" in report.loss_window
        server.command("CONFIG", "SET", "appendonly", "yes")
        report = report_of(server.url, Durability.RELAXED)
        assert verdict(report, "appendonly")[0]
        assert verdict(report, "appendfsync")[0]
        assert "last 2 seconds" in report.loss_window


def test_eviction_is_a_violation_only_where_it_can_happen(server: Server) -> None:
    server.command("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
    assert verdict(report_of(server.url), "maxmemory-policy") == (False, "warning")
    server.command("CONFIG", "SET", "maxmemory", "100mb")
    assert verdict(report_of(server.url), "maxmemory-policy") == (False, "violation")
    assert "CONFIG SET maxmemory-policy noeviction" in refusal(report_of(server.url))
    assert verdict(report_of(server.url, Durability.RELAXED), "maxmemory-policy") == (False, "warning")


@pytest.mark.parametrize("level", LEVELS)
def test_a_replica_is_refused_at_every_level(replicated: tuple[Server, Server], level: Durability) -> None:
    primary, replica = replicated
    report = report_of(replica.url, level)
    assert report.role == "replica"
    text = refusal(report)
    assert f"connect to the primary, 127.0.0.1:{primary.port}" in text
    assert "lower" not in text


def test_quorum_counts_replicas(replicated: tuple[Server, Server]) -> None:
    primary, _ = replicated
    report = report_of(primary.url, Durability.QUORUM)
    enforce(report)
    assert verdict(report, "min-replicas-to-write") == (False, "warning")
    primary.command("CONFIG", "SET", "min-replicas-to-write", 1)
    assert verdict(report_of(primary.url, Durability.QUORUM), "min-replicas-to-write")[0]
    text = refusal(report_of(primary.url, Durability.QUORUM, replicas=2))
    assert "replicas is 1, durability 'quorum' needs 2 or more" in text
    assert 'durability="fsync"' in text


@pytest.mark.parametrize("level", LEVELS)
def test_a_cluster_is_refused_by_a_url_of_one_server_at_every_level(flavour: str, level: Durability) -> None:
    with Server(flavour, cluster_enabled="yes", tcp=True) as server:
        report = report_of(server.url, level)
        assert report.mode == "cluster"
        assert "follow the Cluster: a URL that begins with redis+cluster://" in refusal(report)


@pytest.mark.parametrize("appendonly", ["yes", "no"])
def test_a_server_that_hides_its_settings_is_judged_by_what_it_tells(flavour: str, appendonly: str) -> None:
    with Server(flavour, appendonly=appendonly, rename_command="CONFIG hidden") as server:
        report = report_of(server.url)
        assert verdict(report, "appendfsync") == (False, "warning")
        assert next(f.found for f in report.warnings if f.name == "appendfsync") == "unverified"
        assert verdict(report, "maxmemory-policy")[0]
        assert [f.name for f in report.violations] == ([] if appendonly == "yes" else ["appendonly"])


def test_a_user_who_may_not_ask_is_told_so(flavour: str) -> None:
    with Server(flavour, tcp=True) as server:
        server.command("ACL", "SETUSER", "app", "on", ">s3cret", "~*", "+@all", "-config")
        report = report_of(f"redis://app:s3cret@127.0.0.1:{server.port}")
        enforce(report)
        assert "s3cret" not in repr(report)
        assert verdict(report, "no-appendfsync-on-rewrite") == (False, "warning")


def test_known_flaws_name_a_release_that_is_good(server: Server) -> None:
    report = report_of(server.url)
    names = {f.name for f in report.warnings}
    if report.server == "redis":
        assert "redis-check-aof --fix" in next(f.fix for f in report.warnings if f.name == "torn-aof")
    if report.version.startswith("7.0."):
        assert "7.2.11" in next(f.fix for f in report.warnings if f.name == "security")
    if report.server == "valkey" and tuple(map(int, report.version.split("."))) >= (9, 1, 2):
        assert not names & {"torn-aof", "security"}


def test_the_table_of_patches_judges_versions() -> None:
    def flaws(info: dict[str, str]) -> list[str]:
        facts = durability._Facts({"aof_enabled": "1", **info}, None, 0.0)
        return [f.name for f in durability._known_flaws(facts, Settings())]

    assert flaws({"valkey_version": "9.0.2", "redis_version": "7.2.4"}) == ["torn-aof", "security"]
    assert flaws({"valkey_version": "9.1.2", "redis_version": "7.2.4"}) == []
    assert flaws({"redis_version": "7.2.10"}) == ["torn-aof", "security"]
    assert flaws({"redis_version": "7.2.11"}) == ["torn-aof"]
    assert flaws({"redis_version": "8.2.8"}) == ["torn-aof", "security"]
    assert flaws({"redis_version": "9.0.0"}) == ["torn-aof"]
    assert flaws({}) == []

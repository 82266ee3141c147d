"""Embedded fleets with real processes: formed, kept, failed over, restarted, and gone with the program that started them."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import redis
from redis.sentinel import Sentinel

from headrace.embedded import cluster, sentinel
from headrace.embedded.fleet import Fleet
from headrace.embedded.node import Node
from headrace.errors import Closed, ConfigurationError, NotConnected
from tests.cli.shell import environment
from tests.servers import require
from tests.waiting import wait_until

PROGRAM = """
import sys
from pathlib import Path
from headrace.embedded import cluster, sentinel
with {"cluster": cluster, "sentinel": sentinel}[sys.argv[1]].start(Path(sys.argv[2]), replicas=int(sys.argv[3])) as fleet:
    print(*(node.pid for node in fleet.nodes), flush=True)
    sys.stdin.read()
"""
"""A program with a fleet: prints the process ids, then lives until its stdin ends."""

KINDS: dict[str, Callable[..., Fleet]] = {"cluster": cluster.start, "sentinel": sentinel.start}


@pytest.fixture
def place() -> Iterator[Path]:
    """Where a fleet may live; no server may be left in it."""
    root = Path(tempfile.mkdtemp(prefix="hrf-"))
    yield root / "fleet"
    wait_until(lambda: not servers_below(root), f"no server is left in {root}")
    shutil.rmtree(root)


@pytest.fixture
def flavour_only(flavour: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The flavour whose server is found by whoever looks."""
    if flavour == "redis":
        monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
        found = shutil.which
        monkeypatch.setattr(shutil, "which", lambda name: None if name == "valkey-server" else found(name))
    return flavour


def servers_below(root: Path) -> list[int]:
    """Processes whose command line names a file below this directory."""
    found = []
    for line in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # it ended while we looked
            if os.fsencode(root) in line.read_bytes() and int(line.parent.name) != os.getpid():
                found.append(int(line.parent.name))
    return found


def alive(pid: int) -> bool:
    """Whether a process runs (a zombie does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def parts(fleet: Fleet) -> tuple[str, list[int]]:
    """Password and ports of the URL."""
    url = urlsplit(fleet.url)
    return str(url.password), [int(place.rpartition(":")[2]) for place in url.netloc.rpartition("@")[2].split(",")]


def direct(fleet: Fleet, node: Node) -> redis.Redis:
    """A client of one server."""
    return redis.Redis(port=node.port, password=parts(fleet)[0], decode_responses=True, socket_timeout=5)


def of_cluster(fleet: Fleet) -> redis.RedisCluster:
    """A client of the whole Cluster."""
    password, ports = parts(fleet)
    nodes = [redis.cluster.ClusterNode("127.0.0.1", port) for port in ports]  # type: ignore[no-untyped-call]
    return redis.RedisCluster(startup_nodes=nodes, password=password, decode_responses=True, socket_timeout=2)


def of_sentinel(fleet: Fleet) -> redis.Redis:
    """A client of whoever is primary."""
    password, ports = parts(fleet)
    assert fleet.url.endswith("/headrace")
    watchers = Sentinel(  # type: ignore[no-untyped-call]
        [("127.0.0.1", port) for port in ports], sentinel_kwargs={"password": password}, password=password,
        decode_responses=True, socket_timeout=2,
    )  # fmt: skip
    client: redis.Redis = watchers.master_for("headrace")  # type: ignore[no-untyped-call]
    return client


def said_to_strangers(node: Node) -> bytes:
    """What a server answers to somebody without the password."""
    with socket.create_connection(("127.0.0.1", node.port), 5) as connection:
        connection.sendall(b"PING\r\n")
        return connection.recv(1_000)


def primaries(fleet: Fleet) -> list[Node]:
    return [node for node in fleet.nodes if node.role == "primary"]


def keys(client: Any, count: int = 100) -> dict[str, str | None]:
    return {f"k{n}": client.get(f"k{n}") for n in range(count)}


def written(client: Any, count: int = 100) -> dict[str, str | None]:
    """Keys in every part of a Cluster."""
    for n in range(count):
        client.set(f"k{n}", f"v{n}")
    return {f"k{n}": f"v{n}" for n in range(count)}


def answers(act: Callable[[], object]) -> bool:
    """Whether it works by now; what a client says during a failover is no answer."""
    try:
        act()
    except redis.RedisError:
        return False
    return True


def test_a_cluster_is_whole_and_kept(flavour_only: str, place: Path) -> None:
    """All slots are served, each server sees all, everything is private and durable; the next run has the data at the same ports."""
    with cluster.start(place, primaries=3, replicas=0) as fleet:
        assert fleet.version.startswith(flavour_only)
        assert [node.role for node in fleet.nodes] == ["primary"] * 3
        for node in fleet.nodes:
            with direct(fleet, node) as client:
                info = client.execute_command("CLUSTER INFO")
                assert (info["cluster_state"], info["cluster_slots_ok"]) == ("ok", "16384")
                assert info["cluster_known_nodes"] == "3"
                view = client.execute_command("CLUSTER NODES")
                assert {int(address.rpartition(":")[2]) for address in view} == {n.port for n in fleet.nodes}
                assert all(known["connected"] for known in view.values())
                assert client.config_get("appendfsync") == {"appendfsync": "always"}
                assert client.config_get("bind") == {"bind": "127.0.0.1"}
                assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
            assert said_to_strangers(node).startswith(b"-NOAUTH")
            assert node.port < 32_768
        with of_cluster(fleet) as client:
            expected = written(client)
        assert all(direct(fleet, node).dbsize() for node in fleet.nodes)
        url = fleet.url
    assert servers_below(place) == []
    assert [path for path in (place, *place.rglob("*")) if stat.S_IMODE(path.stat().st_mode) & 0o077] == []
    with cluster.start(place, primaries=3) as fleet:
        assert all("cluster_state:ok" in str(node.ask("CLUSTER", "INFO")) for node in fleet.nodes)
        assert fleet.url == url
        with of_cluster(fleet) as client:
            assert keys(client) == expected
        second, third = fleet.nodes[1:]
        third.ask(
            "CLUSTER", "SETSLOT", 0, "NODE", str(second.ask("CLUSTER", "MYID"))
        )  # which the two others do not believe
        assert cluster._missing(fleet.nodes) == "the servers disagree about the slots"


def test_a_cluster_fails_over(place: Path) -> None:
    """The replica of a killed primary takes over; the whole goes on with what it decided, even when all is killed at once."""
    with cluster.start(place, primaries=3, replicas=1) as fleet:
        assert [node.role for node in fleet.nodes] == ["primary"] * 3 + ["replica"] * 3
        for node in fleet.nodes[3:]:
            assert "master_link_status:up" in str(node.ask("INFO", "replication"))
        with of_cluster(fleet) as client:
            expected = written(client)
        victim = fleet.nodes[0]
        victim.kill()
        assert not victim.running
        wait_until(lambda: len(set(primaries(fleet)) - {victim}) == 3, "a replica took over")
        with of_cluster(fleet) as client:
            wait_until(lambda: answers(lambda: keys(client)), "every key can be read again")
            assert keys(client) == expected
        heir = next(node for node in fleet.nodes[3:] if node.role == "primary")
        assert not victim.running  # what was killed on purpose stays dead
        with pytest.raises(NotConnected, match="server-1 does not run"):
            _ = victim.pid
        for node in fleet.nodes:
            node.kill()
    with cluster.start(place, primaries=3, replicas=1) as fleet:  # the victim comes back believing that it is primary
        again = {node.name: node.role for node in fleet.nodes}
        assert again[heir.name] == "primary"
        assert again[victim.name] == "replica"
        with of_cluster(fleet) as client:
            assert keys(client) == expected


def test_sentinels_fail_over(flavour_only: str, place: Path) -> None:
    """The sentinels find a killed primary's heir, and the next run begins with it."""
    with sentinel.start(place) as fleet:
        assert fleet.version.startswith(flavour_only)
        assert [node.role for node in fleet.nodes] == ["primary", "replica", "sentinel", "sentinel", "sentinel"]
        first, second, *watchers = fleet.nodes
        for node in watchers:
            with direct(fleet, node) as client:
                view = client.sentinel_master("headrace")
                assert (view["num-slaves"], view["num-other-sentinels"], view["port"]) == (1, 2, first.port)
                others = client.sentinel_sentinels("headrace")
                assert [other["flags"] for other in others] == ["sentinel"] * 2  # not "sentinel,disconnected"
                assert (view["down-after-milliseconds"], view["failover-timeout"]) == (1000, 3000)
            assert said_to_strangers(node).startswith(b"-NOAUTH")
        client = of_sentinel(fleet)
        expected = written(client)
        assert client.wait(1, 5_000) == 1
        first.kill()
        wait_until(lambda: answers(lambda: client.set("after", "1")), "the heir takes writes")
        assert second.role == "primary"
        assert keys(client) == expected
        client.close()
        url = fleet.url
    assert [path for path in (place, *place.rglob("*")) if stat.S_IMODE(path.stat().st_mode) & 0o077] == []
    with sentinel.start(place) as fleet:
        assert fleet.url == url
        assert [node.role for node in fleet.nodes[:2]] == ["replica", "primary"]
        client = of_sentinel(fleet)
        assert keys(client) == expected
        assert client.get("after") == "1"
        client.close()


def test_a_dead_server_is_restarted_and_attacks_do_what_they_say(place: Path) -> None:
    """One that dies by itself comes back at its port with its data; one that is paused is silent until it is resumed."""
    with sentinel.start(place, options={"appendfsync": "everysec"}) as fleet:
        first = fleet.nodes[0]
        with direct(fleet, first) as client:
            assert client.config_get("appendfsync") == {"appendfsync": "everysec"}
            expected = written(client, 10)
        for victim in (first, fleet.nodes[-1]):
            pid = victim.pid
            os.kill(pid, signal.SIGKILL)
            wait_until(lambda v=victim, p=pid: v.running and v.pid != p, "another process", 5)  # type: ignore[misc]
            victim.wait_ready(10)
        with direct(fleet, first) as client:
            assert keys(client, 10) == expected
            first.pause()
            with pytest.raises(OSError, match="timed out"):
                first.ask("PING")
            assert first.role == "primary"  # what it said last
            first.resume()
            wait_until(lambda: answers(client.ping), "it answers again")
        first.kill()
        first.kill()
        first.start()
        assert first.ask("PING") == "PONG"
    with pytest.raises(Closed):
        first.start()
    fleet.close()


@pytest.mark.parametrize(("kind", "replicas"), [("cluster", 0), ("sentinel", 1)])
def test_nothing_survives_the_program(kind: str, replicas: int, place: Path) -> None:
    """SIGKILL of the program, with one server paused, ends every server, and the next start works at once."""
    require("valkey")
    words = [sys.executable, "-c", PROGRAM, kind, str(place), str(replicas)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment()) as program:
        assert program.stdout is not None
        pids = [int(word) for word in program.stdout.readline().split()]
        assert len(pids) == {"cluster": 3, "sentinel": 5}[kind]
        with pytest.raises(ConfigurationError, match=rf"already runs, started by process {program.pid}\. Use its URL"):
            KINDS[kind](place, replicas=replicas)
        assert all(map(alive, pids))  # the refusal harmed nobody
        os.kill(pids[0], signal.SIGSTOP)
        program.kill()
        began = time.monotonic()
        wait_until(lambda: not any(map(alive, pids)), "every server is gone", 5)
        assert time.monotonic() - began < 2
    if kind == "sentinel":
        with sentinel.start(place) as fleet:
            assert not {node.pid for node in fleet.nodes} & set(pids)


def test_a_fleet_in_its_default_place_outlives_the_thread_that_started_it(
    monkeypatch: pytest.MonkeyPatch, place: Path
) -> None:
    """The kernel binds a child to the thread that started it, so that is the fleet's own. The place is for this user alone."""
    home = place / "a b'\"é"
    monkeypatch.setenv("HEADRACE_HOME", str(home))
    made: list[Fleet] = []
    starter = threading.Thread(target=lambda: made.append(cluster.start()))
    starter.start()
    starter.join()
    (fleet,) = made
    with fleet:
        pids = [node.pid for node in fleet.nodes]
        wait_until(lambda: not Path(f"/proc/self/task/{starter.native_id}").exists(), "the thread is gone")
        with of_cluster(fleet) as client:
            written(client, 10)
        assert [node.pid for node in fleet.nodes] == pids
        assert fleet.directory == home / "cluster"
        assert stat.S_IMODE(home.stat().st_mode) == 0o700
        record = json.loads((home / "cluster" / "fleet.json").read_bytes())
        assert re.fullmatch(r"[0-9a-f]{32}", record["password"])
        assert record["password"] in fleet.url


def test_what_was_never_ready_is_begun_anew(place: Path) -> None:
    """A start that is cut off leaves nothing that disturbs the next one; one that cannot be is told with the server's words."""
    stages: list[str] = []

    def interrupted(stage: str) -> None:
        stages.append(stage)
        if stage.startswith("waiting"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cluster.start(place, tell=interrupted)
    assert servers_below(place) == []
    assert stages[0] == "starting 3 servers"
    began = time.monotonic()
    with pytest.raises(NotConnected, match=r"server-1 does not start[\s\S]*correct the options[\s\S]*no-such-setting"):
        cluster.start(place, options={"no-such-setting": "1"})
    assert time.monotonic() - began < 5
    with pytest.raises(NotConnected, match=r"within 0\.2 s|is not ready after 0\.2 s: server-\d"):
        cluster.start(place, wait_s=0.2)
    with cluster.start(place) as fleet:
        assert len(primaries(fleet)) == 3


def test_damaged_data_of_one_server_is_told(flavour_only: str, place: Path) -> None:
    """No start cuts away what was acknowledged: the fleet says where the damage is, and begins once that is mended."""
    del flavour_only
    with cluster.start(place, primaries=3, replicas=0) as fleet, of_cluster(fleet) as client:
        expected = written(client)
        data = max((fleet.nodes[0].directory / "appendonlydir").glob("*.incr.aof"))
        at = data.read_bytes().index(b"\r\n$3\r\nSET") + 2
        fleet.nodes[0].kill()
    sound = data.read_bytes()
    data.write_bytes(damaged := sound[:at] + b"#" + sound[at + 1 :])
    with pytest.raises(NotConnected, match=r"server-1 does not start.*is damaged at byte \d+ of"):
        cluster.start(place, primaries=3, replicas=0)
    assert data.read_bytes() == damaged
    data.write_bytes(sound)
    with cluster.start(place, primaries=3, replicas=0) as fleet, of_cluster(fleet) as client:
        assert keys(client) == expected


def test_another_shape_or_a_taken_port_is_refused(place: Path) -> None:
    """The directory says what the fleet is; nothing is started over it, and it is as it was afterwards."""
    with cluster.start(place, primaries=3) as fleet, of_cluster(fleet) as client:
        client.set("k", "v")
        port = fleet.nodes[1].port
    before = {path: path.read_bytes() for path in place.rglob("*") if path.is_file() and path.name != "fleet.lock"}
    assert any(b"SET" in data for path, data in before.items() if path.suffix == ".aof")
    with pytest.raises(ConfigurationError, match=r"primaries: the fleet in .* was made with 3, got 4\. Ask for 3"):
        cluster.start(place, primaries=4)
    with pytest.raises(ConfigurationError, match=r"replicas: the fleet in .* was made with 0, got 1"):
        cluster.start(place, replicas=1)
    with pytest.raises(ConfigurationError, match=r"kind: the fleet in .* was made with cluster, got sentinel"):
        sentinel.start(place)
    with (
        socket.create_server(("127.0.0.1", port)),
        pytest.raises(ConfigurationError, match=rf"Port {port} .* another program has taken it\. End that program"),
    ):
        cluster.start(place)
    kept = (place / "fleet.json").read_text()
    (place / "fleet.json").write_text("{")
    with pytest.raises(ConfigurationError, match=r"fleet\.json cannot be read .*: restore it"):
        cluster.start(place)
    (place / "fleet.json").unlink()
    with pytest.raises(ConfigurationError, match=r"server-1 is in the way"):
        cluster.start(place)
    (place / "fleet.json").write_text(kept)
    assert {path: path.read_bytes() for path in before} == before


@pytest.mark.parametrize("primaries", [-1, 0, 1, 2, 17])
def test_wrong_numbers_of_primaries(primaries: int, place: Path) -> None:
    with pytest.raises(ConfigurationError, match=rf"primaries: a Cluster needs 3 .*, got {primaries}$"):
        cluster.start(place, primaries=primaries)
    assert not place.exists()


def test_wrong_numbers_of_replicas_and_reserved_options(place: Path) -> None:
    for replicas in (-1, 5):
        with pytest.raises(ConfigurationError, match=rf"replicas: expected 0 to 4 of each primary, got {replicas}"):
            cluster.start(place, replicas=replicas)
    for replicas in (0, 5):
        with pytest.raises(ConfigurationError, match=rf"replicas: expected 1 to 4 .*, got {replicas}"):
            sentinel.start(place, replicas=replicas)
    with pytest.raises(ConfigurationError, match="not for the caller to choose: port, requirepass"):
        cluster.start(place, options={"port": "1", "requirepass": "x"})
    with pytest.raises(ConfigurationError, match="of one line"):
        cluster.start(place, options={"save": "900 1\nport 1"})
    assert not place.exists()

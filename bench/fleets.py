"""More than one server, more than one worker: what a Cluster costs its servers, and how long partitions take to change hands."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from bench.event import Figures
from bench.server import Server
from bench.stages import command, figures_of
from headrace.embedded import cluster

PARTITIONS = 16
LEASE_S = 2.0


def cpu_s(pids: Sequence[int]) -> float:
    """CPU seconds that these processes have used."""
    ticks = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def _measure(url: str, pids: Sequence[int], count: int) -> Figures:
    environment = {**os.environ, "HEADRACE_URL": url}
    out: Figures = {}
    for name, program in (("publish", "publish_keyed_16"), ("consume", "consume_ordered_16")):
        before = cpu_s(pids)
        done = subprocess.run(
            command(f"programs {program}", count), env=environment, check=True, stdout=subprocess.PIPE, text=True
        )
        figures = figures_of(done.stdout, program)
        out |= {f"{name}_rate": figures["rate"], f"{name}_client_us": figures["cpu_us"]}
        out[f"{name}_server_us"] = (cpu_s(pids) - before) / count * 1e6
    return out


def primaries(count: int) -> dict[int, Figures]:
    """Publishing to and consuming in order from 16 partitions: by the number of primaries, the CPU of all servers together."""
    with Server("valkey", "always") as server:
        found = {1: _measure(server.url, [server.pid], count)}
    with tempfile.TemporaryDirectory(prefix="hrb-") as place, cluster.start(Path(place) / "fleet") as fleet:
        found[3] = _measure(fleet.url, [n.pid for n in fleet.servers], count)
    return found


def _pid_of(worker: bytes | str | None) -> int:
    """Workers are named `host-pid-chance`; -1: nobody."""
    name = worker.decode() if isinstance(worker, bytes) else worker
    return int(name.split("-")[-2]) if name else -1


def rebalance() -> Figures:
    """Seconds until a second worker has all partitions of one that was killed, and of one that was stopped; and lease_s."""
    with Server("valkey", "always") as server:
        environment = {**os.environ, "HEADRACE_URL": server.url, "BENCH_LEASE_S": str(LEASE_S)}

        def worker() -> subprocess.Popen[bytes]:
            return subprocess.Popen(
                [sys.executable, "-m", "headrace", "run", "bench.standing:app"],
                env=environment,
                stderr=subprocess.DEVNULL,
            )

        def owners() -> set[int]:
            """Process ids of those that have a partition; -1: somebody has not."""
            found = [server.client.hget(f"{{orders.{n}}}:group:bench", "owner") for n in range(PARTITIONS)]
            return {_pid_of(owner) for owner in found}

        def wait(expected: Callable[[], set[int]]) -> float:
            began = time.perf_counter()
            while owners() != expected():
                if time.perf_counter() - began > 60:  # noqa: PLR2004 - something is wrong
                    raise TimeoutError(f"partitions are in the hands of {owners()}")
                time.sleep(0.002)
            return time.perf_counter() - began

        out: Figures = {"lease_s": LEASE_S}
        second = worker()
        try:
            for name, end in (("killed_s", signal.SIGKILL), ("stopped_s", signal.SIGTERM)):
                first = worker()
                out[f"joined_before_{name}"] = wait(lambda: {first.pid, second.pid})  # noqa: B023
                first.send_signal(end)
                out[name] = wait(lambda: {second.pid})
                first.wait()
        finally:
            second.kill()
            second.wait()
        return out

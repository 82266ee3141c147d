"""Ordered groups under fire: whatever happens to workers and server, each key's events are handled in order, once."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence

import msgspec

from headrace import Headrace
from headrace.testing.faults import Fault, Proxy
from tests.faults.apps import KEYS, Job
from tests.faults.stage import Stage, script
from tests.waiting import wait_until


class Publishing(threading.Thread):
    """Publishes jobs one chunk after the other, whatever happens to the server meanwhile."""

    def __init__(self, stage: Stage, jobs: Sequence[Job], chunk: int = 20, pace_s: float = 0.01) -> None:
        super().__init__()
        self._url, self._jobs, self._chunk, self._pace_s = stage.server.url, jobs, chunk, pace_s
        self.start()

    def run(self) -> None:
        asyncio.run(self._publish())

    async def _publish(self) -> None:
        app = Headrace(self._url)
        steps = app.topic("steps", Job, key=lambda job: job.n % KEYS, partitions=3)
        async with app:
            for start in range(0, len(self._jobs), self._chunk):
                await steps.publish_many(self._jobs[start : start + self._chunk])
                await asyncio.sleep(self._pace_s)


def seen(stage: Stage) -> dict[int, list[int]]:
    return {key: [int(n) for n in stage.server.command("LRANGE", f"seen.{key}", 0, -1)] for key in range(KEYS)}


def exact(stage: Stage, count: int, timeout_s: float = 30.0) -> None:
    """All of them were handled, in order per key, with one output each."""
    wait_until(lambda: sum(map(len, seen(stage).values())) >= count, f"{count} are handled", timeout_s)
    assert seen(stage) == {key: list(range(key, count, KEYS)) for key in range(KEYS)}
    outputs = [dict(zip(f[::2], f[1::2], strict=True)) for _, f in stage.server.command("XRANGE", "stepped", "-", "+")]
    assert sorted(msgspec.json.decode(o[b"data"])["n"] for o in outputs) == list(range(count))
    assert len({o[b"id"] for o in outputs}) == count
    handled = [stage.server.command("HGET", f"{{steps.{n}}}:group:g", "handled") for n in range(3)]
    assert sum(int(h or 0) for h in handled) == count


def slow(count: int, act: str = "slow") -> list[Job]:
    return [Job(n, act) for n in range(count)]


def test_workers_are_killed_again_and_again(stage: Stage) -> None:
    publishing = Publishing(stage, slow(1_500))
    for _ in range(4):
        victim = stage.worker("ordered")
        stage.worker("ordered") if len(stage.workers) == 1 else None
        wait_until(lambda: any(c.pid == victim.pid for c in stage.calls) or not publishing.is_alive(), "it works")  # noqa: B023
        victim.kill()
    stage.worker("ordered")
    publishing.join()
    exact(stage, 1_500)


def test_handlers_fail_while_workers_are_killed(stage: Stage) -> None:
    jobs = [Job(n, "once fail" if n % 10 == 3 else "slow") for n in range(700)]
    publishing = Publishing(stage, jobs)
    survivor = stage.worker("ordered")
    for _ in range(2):
        victim = stage.worker("ordered")
        wait_until(lambda: any(c.pid == victim.pid for c in stage.calls) or not publishing.is_alive(), "it works")  # noqa: B023
        victim.kill()
    publishing.join()
    exact(stage, 700)
    assert survivor.code is None


def test_a_zombie_writes_nothing(stage: Stage) -> None:
    Publishing(stage, slow(60, "hold")).join()
    zombie = stage.worker("ordered", victim=True)
    stage.called(KEYS, zombie.pid)
    zombie.pause()
    stage.worker("ordered")
    wait_until(lambda: sum(map(len, seen(stage).values())) == 60, "others have handled all")
    stage.release()
    zombie.resume()
    wait_until(lambda: "lost the partition" in zombie.log, "it says so")
    exact(stage, 60)


def test_a_stopped_worker_hands_over_at_once(stage: Stage) -> None:
    publishing = Publishing(stage, slow(2_400), pace_s=0.02)
    first = stage.worker("ordered", lease_s=30.0)
    stage.called(20, first.pid)
    second = stage.worker("ordered", lease_s=30.0)
    stage.called(20, second.pid)
    first.terminate()
    wait_until(lambda: first.code == 0, "it ends well")
    publishing.join()
    exact(stage, 2_400, 20.0)  # less than the lease


def test_the_server_is_killed(stage: Stage) -> None:
    publishing = Publishing(stage, slow(900))
    stage.worker("ordered")
    stage.worker("ordered")
    for threshold in (100, 400):
        stage.called(threshold)
        stage.server.kill()
        stage.server.start()
    publishing.join()
    exact(stage, 900, 60.0)


def test_killed_after_the_commit_before_its_answer(stage: Stage, proxy: Proxy) -> None:
    proxy.fail(Fault.HOLD_REPLY, when=script("advance"))
    victim = stage.worker("ordered", url=proxy.url)
    stage.serving(victim)
    Publishing(stage, slow(50)).join()
    assert proxy.fired.wait(10)
    victim.kill()
    stage.worker("ordered")
    exact(stage, 50)

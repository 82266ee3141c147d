"""Handlers that misbehave: their events are tried again and then rest in the dead letters; others go on."""

from __future__ import annotations

from tests.faults.apps import Job
from tests.faults.stage import Stage, plain

BAD = [
    Job(100, "fail"),
    Job(101, "exit"),
    Job(102, "interrupt"),
    Job(103, "cancelled"),
    Job(104, "base"),
    Job(105, "reject"),
]
REASONS = {
    100: "ValueError: job 100 always fails",
    101: "HandlerError: the handler called sys.exit(3)",
    102: "KeyboardInterrupt: ",
    103: "HandlerError: the handler raised CancelledError",
    104: "BaseException: not even an Exception",
    105: "Reject: job 105 is no good",
}


def test_each_misdeed_is_its_event_s_alone(stage: Stage) -> None:
    worker = stage.worker()
    stage.publish(
        [
            *plain(range(50)),
            *BAD,
            Job(106, "leak"),
            *(Job(n, "once fail") for n in range(110, 120)),
            *plain(range(50, 100)),
        ]
    )
    good = [*range(100), 106, *range(110, 120)]
    stage.settled(len(good), len(BAD))
    stage.exact(good, REASONS)
    assert stage.reasons() == REASONS
    assert worker.code is None
    attempts = {n: max(c.attempt for c in stage.calls if c.n == n) for n in (*REASONS, 110)}
    assert attempts == {100: 3, 101: 3, 102: 3, 103: 3, 104: 3, 105: 1, 110: 2}


def test_one_that_hangs_is_cancelled(stage: Stage) -> None:
    worker = stage.worker("hurried")
    stage.publish([Job(100, "hang"), *plain(range(50))])
    stage.settled(50, 1)
    stage.exact(range(50), [100])
    assert stage.reasons() == {100: "DeadlineExceeded: the handler ran longer than 0.3 s"}
    assert [c.attempt for c in stage.calls if c.n == 100] == [1, 2]
    assert worker.code is None


def test_one_that_ignores_its_cancellation_is_left_alone(valkey_stage: Stage) -> None:
    stage = valkey_stage
    worker = stage.worker("hurried", "--lanes", "2")
    stage.publish([Job(100, "ignore"), Job(101, "ignore"), *plain(range(50))])
    stage.settled(50, 2, timeout_s=30)
    stage.exact(range(50), [100, 101])
    assert "ignored its cancellation" in stage.reasons()[100]
    assert "ignores its cancellation" in worker.log
    worker.terminate()
    assert worker.wait(15) == 0


def test_threads(stage: Stage) -> None:
    worker = stage.worker("threaded")
    bad = {
        100: ("fail", "ValueError: job 100 always fails"),
        101: ("exit", "HandlerError: the handler called sys.exit(3)"),
        102: ("interrupt", "KeyboardInterrupt: "),
        103: ("stop iteration", "HandlerError: the handler raised StopIteration"),
    }
    stage.publish([*(Job(n, act) for n, (act, _) in bad.items()), *plain(range(100))])
    stage.settled(100, len(bad))
    stage.exact(range(100), bad)
    assert stage.reasons() == {n: reason for n, (_, reason) in bad.items()}
    assert worker.code is None


def test_batches_are_settled_one_by_one(stage: Stage) -> None:
    worker = stage.worker("batched")
    jobs = [
        *plain(range(100)),
        Job(200, "fail"),
        Job(201, "reject"),
        Job(202, "raise"),
        *(Job(n, "once fail") for n in range(100, 110)),
        *plain(range(110, 150)),
    ]
    stage.publish(jobs)
    stage.settled(150, 3)
    stage.exact(range(150), [200, 201, 202])
    assert stage.reasons() == {
        200: "HandlerError: job 200 always fails",
        201: "Reject: job 201 is no good",
        202: "ValueError: job 202 spoils its batch",
    }
    assert worker.code is None


def test_batches_of_a_killed_worker(valkey_stage: Stage) -> None:
    stage = valkey_stage
    stage.publish([*plain(range(200)), *(Job(n, "hold") for n in range(200, 220)), *plain(range(220, 400))])
    victim = stage.worker("batched", victim=True)
    stage.settled(100)
    victim.kill()
    stage.worker("batched")
    stage.settled(400)
    stage.exact(range(400))


def test_poison_kills_a_bounded_number_of_workers(stage: Stage) -> None:
    """An event whose handler ends the process is given up after a few deaths; its neighbours are handled."""
    stage.publish([*plain(range(20)), Job(100, "die"), *plain(range(20, 40))])
    supervisor = stage.worker("app", "--workers", "2", lease_s=0.5)
    stage.settled(40, 1, timeout_s=40)
    stage.exact(range(40), [100])
    assert stage.reasons() == {100: "5 workers that held it died"}
    assert len([c for c in stage.calls if c.n == 100]) == 5
    stage.publish(plain(range(40, 60)))
    stage.settled(60, 1)
    stage.exact(range(60), [100])
    assert supervisor.code is None

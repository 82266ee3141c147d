"""The proxy does what it says: what the server has executed, and what the client gets."""

from __future__ import annotations

import contextlib
import socket
import threading

import pytest

from headrace.testing.faults import Fault, Proxy, command, frame_end, request_words
from tests.faults.stage import Stage
from tests.waiting import wait_until

SET = b"*3\r\n$3\r\nSET\r\n$1\r\n%b\r\n$1\r\n1\r\n"
ECHO = b"*2\r\n$4\r\nECHO\r\n$5\r\nhello\r\n"


def say(proxy: Proxy, *requests: bytes) -> bytes:
    """Everything that comes back for these requests, sent at once, until the end of the connection or the answer to an ECHO."""
    with socket.create_connection(("127.0.0.1", proxy.port), timeout=10) as client:
        client.sendall(b"".join(requests))
        got = b""
        while not got.endswith(b"$5\r\nhello\r\n") and (chunk := client.recv(1_000)):
            got += chunk
        return got


@pytest.mark.parametrize(
    ("fault", "got", "executed"),
    [
        (None, b"+OK\r\n+OK\r\n+OK\r\n$5\r\nhello\r\n", "abc"),
        (Fault.LOSE_REQUEST, None, "a"),
        (Fault.TEAR_REQUEST, None, "a"),
        (Fault.LOSE_REPLY, b"+OK\r\n", "abc"),
        (Fault.TEAR_REPLY, b"+OK\r\n+O", "abc"),
    ],
)
def test_faults(valkey_stage: Stage, fault: Fault | None, got: bytes | None, executed: str) -> None:
    """The second of three writes suffers it; what was sent before it is executed, and what comes behind it shares its fate."""
    server = valkey_stage.server
    with Proxy(server.url) as proxy:
        proxy.fail(fault, 2, command("set"))
        answer = say(proxy, SET % b"a", SET % b"b", SET % b"c", ECHO)
        assert got is None or answer == got
        assert proxy.fired.is_set() == (fault is not None)
        wait_until(
            lambda: (
                sorted(server.command("KEYS", "*"))
                == sorted(executed.encode()[i : i + 1] for i in range(len(executed)))
            ),
            "executed",
        )
        assert say(proxy, ECHO) == b"$5\r\nhello\r\n", "it happens once"


def test_hold_reply(valkey_stage: Stage) -> None:
    with Proxy(valkey_stage.server.url) as proxy:
        proxy.fail(Fault.HOLD_REPLY, 1, command("SET"))
        with socket.create_connection(("127.0.0.1", proxy.port), timeout=0.2) as client:
            client.sendall(SET % b"a")
            assert proxy.fired.wait(10)
            client.sendall(SET % b"b")
            wait_until(lambda: valkey_stage.server.command("EXISTS", "a", "b") == 2, "both are executed")
            with pytest.raises(TimeoutError):
                client.recv(1)


def test_freeze_and_thaw(valkey_stage: Stage) -> None:
    with Proxy(valkey_stage.server.url) as proxy:
        proxy.freeze()
        answers: list[bytes] = []
        asking = threading.Thread(target=lambda: answers.append(say(proxy, ECHO)))
        asking.start()
        asking.join(0.2)
        assert asking.is_alive()
        proxy.thaw()
        asking.join(10)
        assert answers == [b"$5\r\nhello\r\n"]


def test_absent_server(valkey_stage: Stage) -> None:
    with Proxy(valkey_stage.server.url) as proxy:
        valkey_stage.server.kill()
        with contextlib.suppress(ConnectionResetError):  # how a connection ends that nobody wanted
            assert say(proxy, ECHO) == b""


def test_frames() -> None:
    frame = b"*2\r\n$4\r\nECHO\r\n$0\r\n\r\n"
    assert request_words(frame) == [b"ECHO", b""]
    for whole in (
        frame,
        b"+OK\r\n",
        b":12\r\n",
        b"-ERR x\r\n",
        b"$-1\r\n",
        b"*-1\r\n",
        b"*0\r\n",
        b"*2\r\n*1\r\n:1\r\n$2\r\nab\r\n",
    ):
        assert frame_end(whole + b"+x", 0) == len(whole)
        assert all(frame_end(whole[:i], 0) == -1 for i in range(len(whole)))

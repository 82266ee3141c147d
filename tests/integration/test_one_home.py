"""An app is connected once for all who enter it, and used in one process and one event loop."""

from __future__ import annotations

import asyncio
import multiprocessing
import threading
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import pytest

from headrace import Closed, ConfigurationError, Headrace, NotConnected
from tests.servers import Server
from tests.waiting import wait_until_async

pytest_plugins = ["tests.servers"]


def bodies(server: Server, key: str) -> list[bytes]:
    return [fields[-1] for _, fields in server.command("XRANGE", key, "-", "+")]


async def left(server: Server) -> None:
    """Returns when the server has no connection but that which asks."""

    async def alone() -> bool:
        return len(server.command("CLIENT", "LIST").splitlines()) == 1

    await wait_until_async(alone, "every connection is closed")


async def refused(app: Headrace, match: str) -> None:
    """Neither way in is open, and the way out does no harm."""
    with pytest.raises(ConfigurationError, match=match):
        await app.topics["b"].publish({"from": "elsewhere"})
    with pytest.raises(ConfigurationError, match=match):
        await app.topics["b"].publish_many([{"from": "elsewhere"}])
    with pytest.raises(ConfigurationError, match=match):
        async with app:
            pass


def forked(app: Headrace, ready: Event, fine: Event) -> None:
    async def run() -> None:
        await refused(app, "another process")
        await app.aclose()
        fine.set()

    try:
        asyncio.run(run())
    finally:
        ready.set()


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_child_does_not_answer_for_its_parent(server: Server) -> None:
    """What it writes on the inherited connection has an answer, and the parent would take it for the answer to its own event."""
    app = Headrace(server.url)
    full = app.topic("a", dict, cap_events=2)
    app.topic("b", dict)

    async def play() -> None:
        context = multiprocessing.get_context("fork")
        ready, fine = context.Event(), context.Event()
        async with app:
            await full.publish_many([{"n": 0}, {"n": 1}])
            server.pause()
            child = context.Process(target=forked, args=(app, ready, fine))
            child.start()
            await asyncio.to_thread(ready.wait, 20)
            waiting = asyncio.ensure_future(full.publish({"n": 2}))
            await asyncio.sleep(0)
            server.resume()
            done, _ = await asyncio.wait([waiting], timeout=0.5)
            assert not done, "it is at its cap: nothing more can be acknowledged"
            waiting.cancel()
            await asyncio.to_thread(child.join, 20)
        assert fine.is_set()
        assert bodies(server, "a") == [b'{"n":0}', b'{"n":1}']
        assert not server.command("EXISTS", "b")

    asyncio.run(play())


def test_another_thread_is_told_before_anything_is_written(server: Server) -> None:
    app = Headrace(server.url)
    topic = app.topic("b", dict)
    seen: list[BaseException] = []

    def elsewhere() -> None:
        async def run() -> None:
            await refused(app, "another event loop")
            with pytest.raises(ConfigurationError, match="another event loop"):
                await app.aclose()

        try:
            asyncio.run(run())
            with pytest.raises(ConfigurationError, match="another event loop"):
                app.backend()
        except BaseException as e:  # the test reports it
            seen.append(e)

    async def play() -> None:
        async with app:
            await topic.publish({"n": 0})
            thread = threading.Thread(target=elsewhere)
            thread.start()
            await asyncio.to_thread(thread.join)
            if seen:
                raise seen[0]
            await topic.publish({"n": 1})
        assert bodies(server, "b") == [b'{"n":0}', b'{"n":1}']

    asyncio.run(play())


def test_an_app_may_be_used_in_one_event_loop_after_the_other(server: Server) -> None:
    app = Headrace(server.url)
    topic = app.topic("b", dict)

    async def play(n: int) -> None:
        async with app:
            await topic.publish({"n": n})
        with pytest.raises(Closed):
            await topic.publish({"n": n})

    for n in range(2):
        asyncio.run(play(n))
    assert bodies(server, "b") == [b'{"n":0}', b'{"n":1}']


def test_tasks_that_enter_at_once_share_one_backend(server: Server) -> None:
    app = Headrace(server.url)
    topic = app.topic("b", dict)

    async def one(n: int) -> Any:
        async with app:
            await topic.publish({"n": n})
            await asyncio.sleep(0.01 * n)  # they leave one after the other
            await topic.publish({"n": n})
            return app.backend()

    async def play() -> None:
        assert len(set(await asyncio.gather(*(one(n) for n in range(5))))) == 1
        await left(server)
        assert len(bodies(server, "b")) == 10

    asyncio.run(play())


def test_who_waits_for_another_s_opening_goes_on_if_that_is_given_up(server: Server) -> None:
    app = Headrace(server.url)
    topic = app.topic("b", dict)

    async def one() -> None:
        async with app:
            await topic.publish({})

    async def play() -> None:
        server.pause()
        first, second = asyncio.ensure_future(one()), asyncio.ensure_future(one())
        await asyncio.sleep(0.05)
        first.cancel()
        server.resume()
        await second
        assert first.cancelled()
        await left(server)
        server.kill()
        failed = await asyncio.gather(one(), one(), return_exceptions=True)
        assert [type(e) for e in failed] == [NotConnected, NotConnected]
        server.start()
        await one()

    asyncio.run(play())


def test_the_embedded_server_is_held_until_the_last_block_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADRACE_HOME", str(tmp_path / "home"))
    app = Headrace("")
    topic = app.topic("b", dict)

    async def one(hold_s: float) -> None:
        async with app:
            await topic.publish({})
            await asyncio.sleep(hold_s)
            await topic.publish({})

    async def play() -> None:
        await asyncio.gather(one(0.0), one(3.0))

    asyncio.run(play())


def test_what_connect_has_connected_is_not_closed_by_a_block(server: Server) -> None:
    """A worker is connected so, and its handlers may call what enters the app itself."""
    app = Headrace(server.url)
    topic = app.topic("b", dict)

    async def play() -> None:
        await app.connect()
        async with app:
            await topic.publish({"n": 0})
        await topic.publish({"n": 1})
        await app.aclose()
        await left(server)
        async with app:
            await topic.publish({"n": 2})
        await left(server)

    asyncio.run(play())


def test_an_app_that_is_closed_while_it_connects_is_closed(server: Server) -> None:
    app = Headrace(server.url)

    async def play() -> None:
        connecting = asyncio.ensure_future(app.connect())
        await asyncio.sleep(0)
        await app.aclose()
        await connecting
        await left(server)
        with pytest.raises(Closed):
            app.backend()

    asyncio.run(play())

"""The database is set back, restored elsewhere, or has another clock; batches are large, mixed or slow: what is committed is sent once."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.pool import NullPool

from headrace import Headrace, Refused, Topic, limits
from headrace.backends.contract import Record, Route
from headrace.once import Outbox
from headrace.once.relay import Relay
from headrace.once.verdict import first_line
from tests.postgres import Postgres


class Kept:
    """Stands for the server: keeps what is published, and drops the ids that it has, as a topic does."""

    def __init__(self, pause_s: float = 0.0) -> None:
        self.pause_s = pause_s
        self.calls: list[list[Record]] = []
        self.bodies: dict[str, list[bytes]] = {}
        self._ids: set[bytes] = set()

    async def publish(self, route: Route, records: Sequence[Record]) -> None:
        await asyncio.sleep(self.pause_s)
        self.calls.append(list(records))
        for record in records:
            assert record.id is not None
            if record.id not in self._ids:
                self._ids.add(record.id)
                self.bodies.setdefault(route.topic, []).append(record.body)


class Shop:
    def __init__(self, url: str) -> None:
        self.engine = create_async_engine(url, poolclass=NullPool)
        self.plain = create_engine(url.replace("+aiosqlite", "").replace("+asyncpg", "+psycopg"), poolclass=NullPool)
        self.outbox = Outbox(self.engine)
        app = Headrace("redis://127.0.0.1:1", outbox=self.outbox)
        self.topics: list[Topic[bytes]] = [app.topic("orders", bytes), app.topic("bills", bytes)]
        self.routes = {topic.name: topic.route for topic in self.topics}

    def anew(self) -> None:
        """As a database that was set back to before the first row, but for what the relay's table knows."""
        with self.plain.begin() as connection:
            self.outbox.metadata.drop_all(connection, tables=[self.outbox.table])
            self.outbox.metadata.create_all(connection)

    def do(self, statement: str) -> None:
        with self.plain.begin() as connection:
            connection.execute(text(statement))

    async def add(self, *bodies: bytes, topics: int = 1, **options: Any) -> None:
        async with AsyncSession(self.engine) as session, session.begin():
            for n, body in enumerate(bodies):
                await self.topics[n % topics].publish(body, sql=session, **options)

    async def relay(self, server: Kept) -> None:
        """One relay at work until the outbox is empty."""
        relay = Relay(self.outbox, server, self.routes)  # type: ignore[arg-type]
        while await relay._send_some():
            pass
        await relay._leave()


@pytest.fixture(params=["asyncpg", "sqlite"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite+aiosqlite:///{tmp_path}/shop.db"
    postgres: Postgres = request.getfixturevalue("postgres")
    return f"postgresql+asyncpg://{postgres.address}"


def playing(url: str, play: Callable[[Shop], Awaitable[None]]) -> None:
    async def run() -> None:
        shop = Shop(url)
        with shop.plain.begin() as connection:
            shop.outbox.metadata.drop_all(connection)
        shop.anew()
        await play(shop)
        await shop.engine.dispose()

    asyncio.run(run())


def test_rows_after_a_restore_are_new_events(url: str) -> None:
    """Their numbers are those of rows that were sent before it."""

    async def play(shop: Shop) -> None:
        server = Kept()
        await shop.add(b"1", b"2")
        await shop.relay(server)
        shop.anew()
        await shop.add(b"3", b"4")
        await shop.relay(server)
        assert server.bodies == {"orders": [b"1", b"2", b"3", b"4"]}

    playing(url, play)


@pytest.mark.parametrize("url", ["asyncpg"], indirect=True)
def test_rows_from_a_dump_of_another_server_are_sent_in_their_order(url: str) -> None:
    """The numbers of their transactions lie in this server's future."""

    async def play(shop: Shop) -> None:
        server = Kept()
        await shop.add(b"1", b"2")
        shop.do("UPDATE headrace_outbox SET transaction = transaction + 1000000")
        await shop.add(b"3")
        await shop.relay(server)
        assert server.bodies == {"orders": [b"1", b"2", b"3"]}

    playing(url, play)


def test_a_clock_that_was_wrong_stops_no_relay(url: str) -> None:
    async def play(shop: Shop) -> None:
        server = Kept()
        await shop.add(b"1")
        await shop.relay(server)
        shop.do("UPDATE headrace_outbox_relay SET holder = 'dead', until = until + 1000000000000")
        await shop.add(b"2")
        await shop.relay(server)
        assert server.bodies == {"orders": [b"1", b"2"]}

    playing(url, play)


def test_the_events_of_a_topic_travel_together(url: str) -> None:
    async def play(shop: Shop) -> None:
        server, bodies = Kept(), [b"%d" % n for n in range(200)]
        await shop.add(*bodies, topics=2)
        await shop.relay(server)
        assert len(server.calls) == 2
        assert server.bodies == {"orders": bodies[::2], "bills": bodies[1::2]}

    playing(url, play)


def test_what_was_sent_before_its_time_was_over_is_not_sent_again(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "relay_lease_s", 0.05)

    async def play(shop: Shop) -> None:
        server = Kept(pause_s=0.1)
        await shop.add(b"1", b"2", topics=2)
        await shop.relay(server)
        assert [[record.body for record in call] for call in server.calls] == [[b"1"], [b"2"]]

    playing(url, play)


def test_a_batch_has_a_bound_in_bytes(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "publish_buffer_bytes_max", 1_000)

    async def play(shop: Shop) -> None:
        server, bodies = Kept(), [bytes([n]) * 400 for n in range(10)]
        await shop.add(*bodies, b"z" * 5_000)
        await shop.relay(server)
        assert server.bodies == {"orders": [*bodies, b"z" * 5_000]}
        assert max(sum(len(r.body) for r in call) for call in server.calls[:-1]) <= 1_400
        assert len(server.calls) in (4, 5)

    playing(url, play)


def test_no_row_is_taken_whose_server_was_not_asked(url: str) -> None:
    """One that comes while another topic's server is asked waits for the next batch: its own may be away, and then it would be in doubt."""

    class Asked(Kept):
        def __init__(self, shop: Shop) -> None:
            super().__init__()
            self._shop = shop
            self.asked: list[str] = []

        async def reach(self, route: Route) -> None:
            if not self.asked:
                await self._shop.add(b"2", b"3", topics=2)
            self.asked.append(route.topic)

        async def publish(self, route: Route, records: Sequence[Record]) -> None:
            assert route.topic in self.asked
            await super().publish(route, records)

    async def play(shop: Shop) -> None:
        server = Asked(shop)
        await shop.add(b"1")
        await shop.relay(server)
        assert server.bodies == {"orders": [b"1", b"2"], "bills": [b"3"]}
        assert server.asked == ["orders", "bills"]

    playing(url, play)


def test_an_own_id_is_in_doubt_like_any_other(url: str) -> None:
    class Torn(Kept):
        async def publish(self, route: Route, records: Sequence[Record]) -> None:
            raise OSError("away")

    async def play(shop: Shop) -> None:
        await shop.add(b"1", id="own")
        with pytest.raises(OSError, match="away"):
            await shop.relay(Torn())
        shop.do("UPDATE headrace_outbox_relay SET doubt_since = doubt_since - 90000, until = 0")
        with pytest.raises(Refused, match="their ids are own"):
            await shop.relay(Kept())

    playing(url, play)


def test_an_error_without_words_has_a_line() -> None:
    assert first_line(TimeoutError()) == "TimeoutError"

"""`headrace sql`: the tables that it shows are those that it makes, and the inbox uses."""

from __future__ import annotations

import re
import sqlite3
from pathlib import Path

from sqlalchemy import create_engine, text

from tests.cli.shell import say
from tests.postgres import Postgres

GUIDE = (Path(__file__).parents[2] / "docs/guides/sql.md").read_text(encoding="utf-8")


def test_what_is_shown_can_be_executed(tmp_path: Path) -> None:
    shown = say("sql", "show", "--dialect", "sqlite", "--inbox", "mine")
    assert shown.code == 0
    with sqlite3.connect(tmp_path / "a.db") as connection:
        connection.executescript(shown.out)
        columns = [row[1] for row in connection.execute("PRAGMA table_info(mine)")]
    assert columns == ["topic", "consumer_group", "event_id", "handled_at", "writes"]


def test_it_is_made_once(tmp_path: Path, postgres: Postgres) -> None:
    for url in (
        f"sqlite:///{tmp_path}/b.db",
        f"postgresql://{postgres.address}",
        f"postgresql+asyncpg://{postgres.address}",
    ):
        for _ in range(2):
            made = say("sql", "init", url, "--inbox", "made_by_command")
            assert (made.code, made.out) == (
                0,
                "made_by_command, headrace_outbox and headrace_outbox_relay are there\n",
            )


def test_the_statements_for_review() -> None:
    assert (
        say("sql", "show").out
        == """\
CREATE TABLE headrace_inbox (
	topic VARCHAR(128) NOT NULL,
	consumer_group VARCHAR(128) NOT NULL,
	event_id VARCHAR(512) NOT NULL,
	handled_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
	writes BYTEA,
	PRIMARY KEY (topic, consumer_group, event_id)
);
CREATE INDEX ix_headrace_inbox_handled_at ON headrace_inbox (handled_at);
CREATE TABLE headrace_outbox (
	id BIGSERIAL NOT NULL,
	transaction BIGINT DEFAULT (pg_current_xact_id()::text::bigint) NOT NULL,
	topic VARCHAR(128) NOT NULL,
	record BYTEA NOT NULL,
	PRIMARY KEY (id)
);
CREATE TABLE headrace_outbox_relay (
	one INTEGER NOT NULL,
	holder VARCHAR(128) NOT NULL,
	until DOUBLE PRECISION NOT NULL,
	doubt_first BIGINT,
	doubt_last BIGINT,
	doubt_since DOUBLE PRECISION,
	PRIMARY KEY (one)
);
"""
    )


def test_bad_input() -> None:
    for words, code, says in (
        (("sql", "init", "nonsense"), 2, "expected a URL like postgresql://user@host/name"),
        (("sql", "init", "postgresql://nobody@127.0.0.1:1/none"), 3, "127.0.0.1"),
        (("sql", "init", "postgresql+nosuch://x@y/z"), 2, "the driver of postgresql+nosuch is not installed"),
        (("sql", "init", "mysql://x@y/z"), 2, "mysql is not supported: inbox and outbox are for PostgreSQL and SQLite"),
        (("sql",), 2, "init|show"),
    ):
        said = say(*words)
        assert (said.code, says in said.err) == (code, True), said


def test_a_database_that_is_not_there(postgres: Postgres) -> None:
    """What to do about it is not what one does about a Redis server."""
    server = postgres.address.rpartition("/")[0]
    for url, says in (
        (f"postgresql://{server}/nosuch", 'database "nosuch" does not exist'),
        (f"postgresql+asyncpg://{server}/nosuch", 'database "nosuch" does not exist'),
        ("postgresql://me:secret@127.0.0.1:1/shop", "Connection refused"),
        ("sqlite:////nosuch/shop.db", "unable to open database file"),
    ):
        said = say("sql", "init", url)
        first, hint = said.err.splitlines()
        assert (said.code, said.out, first.endswith(says), "secret" in first) == (3, "", True, False), said
        assert hint == (
            "hint: correct the URL, start its server, or make the database first: tables are all that is made here"
        )


def test_the_guide_makes_the_tables_that_its_examples_write_to(postgres: Postgres) -> None:
    writes = re.findall(r"INSERT INTO (\w+) \(([\w, ]+)\)", GUIDE)
    assert len(writes) == 6
    engine = create_engine(f"postgresql+psycopg://{postgres.address}")
    with engine.connect() as connection:  # rolled back at its end
        connection.execute(
            text("CREATE SCHEMA guide; SET search_path TO guide")
        )  # other tests have tables of these names
        connection.execute(text("".join(re.findall(r"```sql\n(.*?)```", GUIDE, re.DOTALL))))
        for table, columns in writes:
            assert connection.execute(text(f"SELECT {columns} FROM {table}")).all() == []  # noqa: S608 - ours
    engine.dispose()


def test_the_programs_of_the_guide_agree_on_the_events_of_a_topic() -> None:
    """What one of them publishes the other one can read."""
    one, two = re.findall(r"class Order\(Struct\):[^\n]*\n((?:    .*\n)+)", GUIDE)
    assert one == two

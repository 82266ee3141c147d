"""`headrace sql init` and `headrace sql show`: the tables that Headrace keeps in a user's database."""

from __future__ import annotations

import argparse
import asyncio
from typing import Any, Final

from headrace.cli import output
from headrace.cli.command import Command, require
from headrace.cli.exits import NO_SERVER, OK
from headrace.errors import ConfigurationError

_SUPPORTED: Final = ("postgres", "postgresql", "sqlite")


def _arguments(parser: argparse.ArgumentParser) -> None:
    ways = parser.add_subparsers(metavar="init|show", required=True)
    init = ways.add_parser("init", help="make what is absent", allow_abbrev=False)
    init.add_argument("database", metavar="URL", help="postgresql://..., sqlite:///file, as SQLAlchemy writes them")
    init.set_defaults(way=_init)
    show = ways.add_parser("show", help="print the statements, for review or a migration tool", allow_abbrev=False)
    show.add_argument("--dialect", choices=("postgresql", "sqlite"), default="postgresql")
    show.set_defaults(way=_show)
    for way in (init, show):
        way.add_argument(
            "--inbox", metavar="TABLE", default="headrace_inbox", help="name of the inbox (headrace_inbox)"
        )
        way.add_argument(
            "--outbox", metavar="TABLE", default="headrace_outbox", help="name of the outbox (headrace_outbox)"
        )
        way.add_argument("--schema", metavar="NAME", help="where the tables live, if not in the default schema")


def _execute(args: argparse.Namespace) -> int:
    require("sqlalchemy", "`headrace sql` needs SQLAlchemy", "sql")
    code: int = args.way(args)
    return code


def _metadata(args: argparse.Namespace) -> Any:
    from sqlalchemy import MetaData

    from headrace.once import tables

    metadata = MetaData()
    tables.inbox(args.inbox, args.schema, metadata)
    tables.outbox(args.outbox, args.schema, metadata)
    tables.relay(args.outbox, args.schema, metadata)
    return metadata


def _show(args: argparse.Namespace) -> int:
    from sqlalchemy.dialects import postgresql, sqlite
    from sqlalchemy.schema import CreateIndex, CreateTable

    dialect: Any = postgresql.dialect() if args.dialect == "postgresql" else sqlite.dialect()  # type: ignore[no-untyped-call]
    statements: list[Any]
    for table in _metadata(args).sorted_tables:
        statements = [CreateTable(table), *map(CreateIndex, table.indexes)]
        for statement in statements:
            output.line(
                "\n".join(line.rstrip() for line in str(statement.compile(dialect=dialect)).strip().splitlines()) + ";"
            )
    return OK


def _init(args: argparse.Namespace) -> int:
    from sqlalchemy import exc, make_url

    from headrace.once.verdict import first_line

    try:
        url = make_url(args.database)
    except exc.ArgumentError:
        raise ConfigurationError(
            f"expected a URL like postgresql://user@host/name or sqlite:///file, got {args.database!r}"
        ) from None
    if url.get_backend_name() not in _SUPPORTED:
        raise ConfigurationError(
            f"{url.get_backend_name()} is not supported: inbox and outbox are for PostgreSQL and SQLite"
        )
    if url.drivername in {"postgres", "postgresql"}:
        url = url.set(drivername="postgresql+psycopg")
    try:
        asyncio.run(_make(url, _metadata(args)))
    except (ImportError, exc.NoSuchModuleError) as e:
        raise ConfigurationError(f"the driver of {url.drivername} is not installed: {e}") from None
    except (exc.DBAPIError, OSError) as e:
        output.note(f"headrace: {url.render_as_string()}: {first_line(e)}")
        output.note(
            "hint: correct the URL, start its server, or make the database first: tables are all that is made here"
        )
        return NO_SERVER
    output.line(f"{args.inbox}, {args.outbox} and {args.outbox}_relay are there")
    return OK


async def _make(url: Any, metadata: Any) -> None:
    from sqlalchemy import create_engine
    from sqlalchemy.ext.asyncio import create_async_engine

    if not url.get_dialect().is_async:
        engine = create_engine(url)
        metadata.create_all(engine)
        engine.dispose()
        return
    waiting = create_async_engine(url)
    async with waiting.begin() as connection:
        await connection.run_sync(metadata.create_all)
    await waiting.dispose()


COMMANDS = {"sql": Command(_arguments, _execute)}

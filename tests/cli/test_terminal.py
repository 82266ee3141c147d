"""What only a terminal gets: bold column names, thousands separators, progress."""

from __future__ import annotations

import re

from tests.cli.shell import on_terminal, say
from tests.servers import Server


def test_table(cli_server: Server) -> None:
    """Numbers are grouped and end in one column; in a pipe they are plain."""
    cli_server.command("HSET", "headrace:topics", "orders", 1, "a", 1)
    cli_server.command("XADD", "orders", "1-1", "data", "{}")
    cli_server.command("XSETID", "orders", "2-0", "ENTRIESADDED", 1_234_567, "MAXDELETEDID", "1-0")
    code, screen = on_terminal("topics", env={"HEADRACE_URL": cli_server.url})
    assert code == 0
    head, a, orders = screen.splitlines()
    assert head.startswith("\x1b[1mtopic   partitions  events  published  delayed")
    assert head.endswith("\x1b[0m")
    assert re.fullmatch(r"a +1 +0 +0 +0  0 B +none", a)
    assert re.fullmatch(r"orders +1 +1  1,234,567 +0  \S+ \S+ +none", orders)
    assert "  1234567  " in say("topics").out


def test_progress(cli_server: Server) -> None:
    """Long work shows how far it is, and clears the line before the answer."""
    code, screen = on_terminal(
        "publish", "orders", "--lines", stdin=b"{}\n" * 200_000, env={"HEADRACE_URL": cli_server.url}
    )
    assert code == 0
    assert re.search(r"\rpublished [\d,]+, [\d,]+/s", screen)
    assert re.search(r"\r +\rpublished 200,000 events to orders\n$", screen)

"""What a command is, and the arguments that several commands share."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Callable
from functools import partial
from typing import Final, NamedTuple

from headrace import limits
from headrace.errors import ConfigurationError
from headrace.event import check_name

topic_name: Final = partial(check_name, "topic")
group_name: Final = partial(check_name, "group")


class Command(NamedTuple):
    """One command: declares its arguments, and does its work."""

    arguments: Callable[[argparse.ArgumentParser], None]
    execute: Callable[[argparse.Namespace], int]
    """Returns the exit code; raises a HeadraceError to end with one sentence."""


def add_server(parser: argparse.ArgumentParser) -> None:
    """Arguments of a command that talks to a server."""
    parser.add_argument(
        "--url", help="redis://, rediss://, unix://; default: HEADRACE_URL, REDIS_URL, else the embedded server"
    )
    parser.add_argument("--durability", help="what must be true of the server: fsync (default), quorum or relaxed")
    add_json(parser)


def add_json(parser: argparse.ArgumentParser) -> None:
    """`--json`."""
    parser.add_argument("--json", action="store_true", help="print JSON for scripts")


def add_topic(parser: argparse.ArgumentParser, *, optional: bool = False) -> None:
    """The topic's name."""
    parser.add_argument("topic", metavar="TOPIC", nargs="?" if optional else None, type=topic_name)


def add_group(parser: argparse.ArgumentParser, *, optional: bool = False) -> None:
    """The group's name."""
    parser.add_argument("group", metavar="GROUP", nargs="?" if optional else None, type=group_name)


def count(text: str) -> int:
    """A number of at least 1, for the argument parser. Raises ConfigurationError."""
    digits = text.lstrip("0")
    if not text.isascii() or not text.isdigit() or not digits:
        raise ConfigurationError(f"number: expected 1 or more, got {text!r:.100}")
    if len(digits) > len(str(limits.number_max)) or int(digits) > limits.number_max:
        raise ConfigurationError(f"number: expected at most {limits.number_max:,}, got {text!r:.100}")
    return int(digits)


def require(module: str, says: str, extra: str) -> None:
    """Raises ConfigurationError if a library that only some commands need is not there."""
    try:
        importlib.import_module(module)
    except ImportError:
        raise ConfigurationError(f"{says}: pip install 'headrace[{extra}]'") from None


def confirm(args: argparse.Namespace, consequence: str) -> None:
    """Raises ConfigurationError unless the user has said `--yes` to something that cannot be undone."""
    if not args.yes:
        raise ConfigurationError(f"{consequence}; nothing was done: say --yes if that is what you want")

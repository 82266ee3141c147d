"""The command `headrace`: finds the command's module, runs it, and turns its errors into one sentence and an exit code.

Only what `headrace --version` and `headrace --help` need is imported here: the standard library's argument parser.
"""

from __future__ import annotations

import argparse
import importlib
import re
import sys
import traceback
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, NoReturn

from headrace import errors
from headrace.cli import streams
from headrace.cli.exits import BUG, INTERRUPTED, NO_SERVER, OK, REFUSED, USAGE
from headrace.version import VERSION

if TYPE_CHECKING:
    from headrace.cli.command import Command

_COMMANDS: Final = {
    "run": ("run", "handle events: `headrace run shop:app --workers 4`"),
    "demo": ("run", "see exactly-once with your own eyes: real events, killed workers, a killed server"),
    "up": ("up", "hold the embedded server of this project in the foreground, or run a Cluster or sentinels"),
    "publish": ("publish", "publish JSON from the command line or from stdin"),
    "tail": ("tail", "print the last events of a topic, or its dead letters"),
    "topics": ("topics", "list the topics"),
    "partitions": ("topics", "give a topic more partitions, while it is used"),
    "groups": ("topics", "list the groups, or start one anew at another place"),
    "pending": ("topics", "list what workers hold"),
    "dead": ("dead", "list, show, replay or drop dead letters"),
    "replay": ("replay", "give a time or id range of a topic to one group again"),
    "ledger": ("ledger", "prove that nothing is missing: where every event stands"),
    "relay": ("relay", "send what an app's transactions have published to its outbox"),
    "sql": ("sql", "make or show the tables of inbox and outbox in a database"),
    "stack": ("stack", "which event system a service needs and why; and whether its manifest says what is true"),
    "new": ("new", "a new service with its tests: `headrace new shop --type python-worker`"),
    "explain": ("stack", "explain a finding of `headrace stack lint`"),
    "doctor": ("doctor", "check what the server would forget, and how to fix it"),
}
"""name -> (module, what it does). The module is imported when the command is called."""

_EPILOG: Final = """\
server:
  --url, else HEADRACE_URL, else REDIS_URL, else the embedded server of this project.

exit codes:
  0    done
  1    the answer is no: the ledger does not balance, the server violates the level, the demo is not exact
  2    wrong usage or configuration
  3    no server
  4    the server refused, or is full
  70   a bug in headrace (with its traceback)
  130  interrupted
"""

_EXITS: Final[tuple[tuple[type[errors.HeadraceError], int], ...]] = (
    (errors.NotConnected, NO_SERVER),
    (errors.BackendError, REFUSED),
    (errors.HeadraceError, USAGE),
)
_HINTS: Final[tuple[tuple[type[errors.HeadraceError], str], ...]] = (
    (errors.DurabilityError, "`headrace doctor` shows the whole check; `--durability relaxed` accepts the risk"),
    (
        errors.NotConnected,
        "start the server or give another --url (HEADRACE_URL); with no URL at all, headrace brings its own server",
    ),
)
_MOMENTS: Final = ("--from", "--to", "--at")


class Parser(argparse.ArgumentParser):
    """Speaks like the rest of the command: one sentence, then a hint. Options may stand anywhere, between arguments too."""

    def parse_known_args(  # type: ignore[override]  # the stubs have overloads for a namespace of another class
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """As documented there; it would take an argument that may be left out for absent if the next word is an option."""
        if args is not None and self._subparsers is None:
            args = self._options_first(args)
        return super().parse_known_args(args, namespace)

    def _options_first(self, words: Sequence[str]) -> Sequence[str]:
        """The same words: options with their values, then the arguments. What comes after `--` is no option."""
        options: list[str] = []
        arguments: list[str] = []
        rest = iter(words)
        for word in rest:
            if word == "--":
                return [*options, "--", *arguments, *rest]
            if self._parse_optional(word) is None:
                arguments.append(word)
                continue
            options.append(word)
            option = self._option_string_actions.get(word)
            if option is not None and option.nargs is None:
                value = next(rest, None)
                if value is None:
                    return words  # whose end says best that the value is missing
                options.append(value)
        return [*options, *arguments]

    def error(self, message: str) -> NoReturn:
        """Ends the command with the exit code for wrong usage."""
        streams.tell(f"headrace: {message}\nhint: {self.prog} --help")
        self.exit(USAGE)


def build(called: str | None) -> argparse.ArgumentParser:
    """The parser with the names of all commands, and the arguments of the one that is called."""
    parser = Parser(
        prog="headrace",
        description="Typed events, exactly once, on the Redis or Valkey you have.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"headrace {VERSION}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for name, (module, purpose) in _COMMANDS.items():
        sub = commands.add_parser(
            name, help=purpose, description=purpose[0].upper() + purpose[1:] + ".", allow_abbrev=False
        )
        if name == called:
            command: Command = importlib.import_module(f"headrace.cli.{module}").COMMANDS[name]
            command.arguments(sub)
            sub.set_defaults(execute=command.execute)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command line and returns its exit code. Raises nothing but SystemExit for `--help` and wrong usage."""
    streams.prepare()
    code: int = OK
    try:
        words = joined(sys.argv[1:] if argv is None else argv)
        args = build(words[0] if words else None).parse_args(words)
        code = args.execute(args)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # the reader of our output has seen enough (`| head`)
        return code
    except errors.HeadraceError as e:
        return complain(e)
    except Exception:  # noqa: BLE001 - a bug: shown in full, with an exit code of its own
        streams.tell(traceback.format_exc().rstrip())
        return BUG
    finally:
        streams.let_go()
    return code


def complain(error: errors.HeadraceError) -> int:
    """Prints one sentence, and a hint where there is one; returns the exit code of this kind of error."""
    streams.tell(f"headrace: {error}")
    for kind, hint in _HINTS:
        if isinstance(error, kind):
            streams.tell(f"hint: {hint}")
    return next(code for kind, code in _EXITS if isinstance(error, kind))


def joined(argv: Sequence[str]) -> list[str]:
    """`--from -1h` as `--from=-1h`: the parser would take the value for an option."""
    words: list[str] = []
    for word in argv:
        if words and words[-1] in _MOMENTS and re.match(r"-\d", word):
            words[-1] += f"={word}"
        else:
            words.append(word)
    return words

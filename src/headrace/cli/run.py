"""`headrace run` and `headrace demo`: worker processes."""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import sys
import traceback
from pathlib import Path

from headrace.app import Headrace
from headrace.cli.command import Command, add_json, count
from headrace.errors import ConfigurationError
from headrace.runtime import supervisor, worker

_EXAMPLE = "`headrace run shop:app` for an app = Headrace() in shop.py"


def _run_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "target", metavar="TARGET", help="module:attribute of the app; the current directory is on the path"
    )
    parser.add_argument(
        "--workers", metavar="N", type=count, default=1, help="processes; one that dies is replaced (1: this process)"
    )
    parser.add_argument(
        "--lanes", metavar="N", type=count, help="handlers of a subscription that run at once, per process"
    )
    parser.add_argument("--parent-pipe", type=int, help=argparse.SUPPRESS)  # for the supervisor's own use
    parser.add_argument("--url", help="the server, for an app that does not name one itself")
    parser.add_argument(
        "--durability", help="the level, for an app that does not name one itself: fsync, quorum or relaxed"
    )


def _run(args: argparse.Namespace) -> int:
    # The environment is how an app finds its server, and how child processes do: a URL on their command line would show its secrets.
    if args.url is not None:
        os.environ["HEADRACE_URL"] = args.url
    if args.durability is not None:
        os.environ["HEADRACE_DURABILITY"] = args.durability
    app = load_app(args.target)
    for what, wanted, has in (
        ("url", args.url, app.settings.url),
        ("durability", args.durability, app.settings.durability.value),
    ):
        if wanted is not None and wanted != has:
            raise ConfigurationError(
                f"{args.target} names its own {what}: leave out --{what}, or take it out of Headrace(...)"
            )
    if not app.groups:
        raise ConfigurationError(
            f"{args.target} has no subscriptions: decorate a handler with @topic.subscribe('group')"
        )
    if args.workers > 1:
        return supervisor.supervise(
            args.target, args.workers, [] if args.lanes is None else ["--lanes", str(args.lanes)]
        )
    for group in app.groups.values():
        group.lanes = args.lanes or group.lanes
    # Only where the app has not set up logging of its own.
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    if logging.getLogger("headrace").level == logging.NOTSET:
        logging.getLogger("headrace").setLevel(logging.INFO)
    return worker.main(app, args.parent_pipe)


def load_app(target: str) -> Headrace:
    """The app that `module:attribute` names; the current directory is on the path. Raises ConfigurationError."""
    module_name, colon, path = target.partition(":")
    if not colon or not module_name or not path:
        raise ConfigurationError(f"target: expected MODULE:ATTRIBUTE, got {target!r}; {_EXAMPLE}")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    found = _import(module_name)
    for name in path.split("."):
        if not hasattr(found, name):
            raise ConfigurationError(f"target: module {module_name} has no {path!r}{_candidates(found)}")
        found = getattr(found, name)
    if not isinstance(found, Headrace):
        raise ConfigurationError(
            f"target: {target} is a {type(found).__name__}, expected a Headrace app{_candidates(sys.modules[module_name])}"
        )
    return found


def _import(name: str) -> object:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as e:
        if e.name is not None and (name == e.name or name.startswith(f"{e.name}.")):
            raise ConfigurationError(
                f"target: no module {name!r} in {Path.cwd()} or among the installed packages; {_EXAMPLE}"
            ) from None
        _show_from(e, name)
        raise ConfigurationError(f"target: module {name} cannot be imported: {e}") from None
    except ConfigurationError:
        raise
    except Exception as e:  # noqa: BLE001 - whatever the user's module raises is shown with its place
        _show_from(e, name)
        raise ConfigurationError(f"target: module {name} cannot be imported: {type(e).__name__}: {e}") from None


def _show_from(error: Exception, name: str) -> None:
    """Prints where the user's module failed, without the frames that led to it."""
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_globals.get("__name__") != name:
        trace = trace.tb_next
    if trace is not None or isinstance(error, SyntaxError):
        traceback.print_exception(type(error), error, trace, chain=False)


def _candidates(module: object) -> str:
    names = [name for name, value in vars(module).items() if isinstance(value, Headrace)]
    return f"; its apps: {', '.join(names)}" if names else ""


def _demo_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--workers", metavar="N", type=count, default=2, help="worker processes (2)")
    parser.add_argument("--quick", action="store_true", help="fewer events")
    parser.add_argument("--seed", metavar="N", type=int, help="draw the kills as an earlier run did")
    add_json(parser)


def _demo(args: argparse.Namespace) -> int:
    demo = importlib.import_module("headrace.cli.demo")  # only when asked for
    code: int = demo.run(workers=args.workers, quick=args.quick, json=args.json, seed=args.seed)
    return code


COMMANDS = {"run": Command(_run_arguments, _run), "demo": Command(_demo_arguments, _demo)}

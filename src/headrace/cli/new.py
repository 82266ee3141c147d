"""`headrace new`: a service that is there at once, with its tests."""

from __future__ import annotations

import argparse
import datetime as dt
import importlib.metadata
import json
import shlex
import sys
from pathlib import Path
from typing import Any

from headrace.cli import output
from headrace.cli.command import Command, require
from headrace.cli.exits import OK

_TYPES = ("rust-axum", "rust-grpc", "python-fastapi", "python-worker")
_EVENTS = ("redis-streams", "kafka")


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="of the service, and of the folder: a-z, 0-9 and hyphens")
    parser.add_argument("--type", required=True, choices=_TYPES, help="what is generated")
    parser.add_argument("--events", choices=_EVENTS, default="redis-streams", help="the event system (redis-streams)")
    parser.add_argument(
        "--stack", metavar="FILE", type=Path, help="a manifest with requirements, and the decision if it is made"
    )
    parser.add_argument("--into", metavar="FOLDER", type=Path, help="add to this folder; default: a new one, ./NAME")
    parser.add_argument("--dry-run", action="store_true", help="list what would be written")


def _execute(args: argparse.Namespace) -> int:
    require("jinja2", "`headrace new` needs Jinja2", "stack")
    require("yaml", "`headrace new` needs PyYAML", "stack")
    from headrace.scaffold import generate, service
    from headrace.stack import claims, facts, manifest

    read = manifest.load(args.stack) if args.stack is not None else None
    described = service.describe(args.name, args.type, args.events, read, dt.datetime.now(dt.UTC).date())
    rendering = generate.rendered(described)
    target = args.into if args.into is not None else Path(args.name)
    generate.check(rendering, target, into=args.into is not None)
    if args.dry_run:
        for path in sorted(rendering.files):
            output.line(path)
        output.note("nothing was written")
        return OK
    if args.into is not None:
        generate.add(rendering, target)
    else:
        generate.create(rendering, target)
    output.line(f"{target}: {output.plural(len(rendering.files), 'file')} of {args.type} {rendering.lock.template}")
    for finding in claims.lint(manifest.load(target / "stack.yaml"), facts.load()):
        output.note(str(finding))
    if described.differs:
        output.note(f"the requirements ask for {described.differs}")
    source = _source() if args.type.startswith("python-") else None
    if source is not None:
        output.note(
            "this headrace comes from no package index, where the service looks for it; so first:\n"
            f"  {shlex.join((sys.executable, '-m', 'pip', 'wheel', '-q', '--no-deps', '-w', 'wheels', source))}"
            " && export PIP_FIND_LINKS=$PWD/wheels"
        )
    output.note(f"next: cd {target} && make test; then read README.md")
    return OK


def _source() -> str | None:
    """What pip installed this package from, if that was no index (PEP 610)."""
    text = importlib.metadata.distribution("headrace").read_text("direct_url.json")
    if text is None:
        return None
    found: dict[str, Any] = json.loads(text)
    vcs: dict[str, str] | None = found.get("vcs_info")
    url: str = found["url"]
    return url if vcs is None else f"{vcs['vcs']}+{url}@{vcs['commit_id']}"


COMMANDS = {"new": Command(_arguments, _execute)}

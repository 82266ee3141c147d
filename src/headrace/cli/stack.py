"""`headrace stack` and `headrace explain`: the advice, the lint and the schema of `stack.yaml`."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from headrace.cli import output, streams
from headrace.cli.command import Command, add_json, add_server, count, require
from headrace.cli.exits import NO, OK
from headrace.settings import Settings

_MANIFEST = "stack.yaml"


def _arguments(parser: argparse.ArgumentParser) -> None:
    from headrace.cli import advise

    ways = parser.add_subparsers(metavar="advise|lint|check|calibrate|upgrade|schema", required=True)

    def way(name: str, purpose: str, execute: Callable[[argparse.Namespace], int]) -> argparse.ArgumentParser:
        sub = ways.add_parser(
            name, help=purpose, description=purpose[0].upper() + purpose[1:] + ".", allow_abbrev=False
        )
        sub.set_defaults(way=execute)
        return sub

    advise.arguments(
        way("advise", "say which event system the requirements ask for, with every number", advise.execute)
    )
    lint = way("lint", "hold what a manifest, code and settings claim against what is so", _lint)
    lint.add_argument("manifest", metavar="FILE", nargs="?", default=_MANIFEST, type=Path, help=f"({_MANIFEST})")
    lint.add_argument(
        "--code", metavar="FOLDER", type=Path, help="look through these files, too; default: where the manifest is"
    )
    lint.add_argument("--format", choices=("text", "json", "github", "sarif"), default="text")
    calibrate = way(
        "calibrate",
        "measure what an event costs on your server; some thousands are published and deleted again",
        _calibrate,
    )
    add_server(calibrate)
    calibrate.add_argument("--events", metavar="N", type=count, default=20_000, help="of each of two sizes (20,000)")
    calibrate.add_argument("--write", metavar="FILE", type=Path, help="for `headrace stack advise --facts FILE`")
    check = way("check", "hold the live server against the manifest: is it time to leave?", _check)
    check.add_argument("manifest", metavar="FILE", nargs="?", default=_MANIFEST, type=Path, help=f"({_MANIFEST})")
    check.add_argument("--seconds", metavar="S", type=count, default=5, help="how long to count what is published (5)")
    add_server(check)
    upgrade = way(
        "upgrade", "merge the templates of this release, or a changed manifest, into a generated service", _upgrade
    )
    upgrade.add_argument("folder", metavar="FOLDER", nargs="?", default=".", type=Path, help="of the service (.)")
    upgrade.add_argument("--dry-run", action="store_true", help="say what would be done")
    upgrade.add_argument("--allow-dirty", action="store_true", help="although not everything is committed")
    way("schema", "print the JSON Schema of stack.yaml, for editors", _schema)


def _execute(args: argparse.Namespace) -> int:
    require("yaml", "`headrace stack` needs PyYAML", "stack")
    code: int = args.way(args)
    return code


def _lint(args: argparse.Namespace) -> int:
    from headrace.stack import claims, facts, finding, manifest, sources

    read = manifest.load(args.manifest)
    known = facts.load()
    found = claims.lint(read, known)
    found += sources.scan(args.code or args.manifest.resolve().parent, read, known)
    with streams.answer():
        if args.format == "json":
            output.json(found)
        elif args.format == "sarif":
            output.json(finding.sarif(found))
        else:
            for one in found:
                output.line(finding.github(one) if args.format == "github" else str(one))
    if args.format == "text":
        codes = ", ".join(sorted({f.code for f in found}))
        output.note(
            f"{output.plural(len(found), 'finding')}; `headrace explain` says more about {codes}"
            if found
            else "nothing found"
        )
    return NO if any(f.severity == "error" for f in found) else OK


def _calibrate(args: argparse.Namespace) -> int:
    import asyncio

    from headrace.cli.server import open_server
    from headrace.stack import calibrate, facts

    stage = output.Stage()
    with open_server(args) as settings:
        try:
            measured = asyncio.run(calibrate.calibrate(settings, args.events, stage.show))
        finally:
            stage.end()
    if args.json:
        output.json(measured)
    elif args.write is not None:
        args.write.write_text(facts.written(measured), encoding="utf-8")
        output.line(f"written to {args.write}; use it by `headrace stack advise --facts {args.write}`")
    else:
        output.line(facts.written(measured).rstrip())
    return OK


def _check(args: argparse.Namespace) -> int:
    import asyncio

    from headrace import backends
    from headrace.backends.redis.client import Client
    from headrace.cli.server import open_server
    from headrace.stack import check, facts, live, manifest

    read = manifest.load(args.manifest)
    leave = check.conditions(read, facts.load())
    stage = output.Stage()

    async def look(settings: Settings) -> live.Live:
        inspector, client = await backends.inspector(settings), Client(settings)
        try:
            return await live.measure(inspector, client, read, args.seconds, stage.show)
        finally:
            stage.end()
            await client.aclose()
            await inspector.aclose()

    with open_server(args) as settings:
        rows = check.check(read, leave, asyncio.run(look(settings)))
    with streams.answer():
        if args.json:
            output.json(rows)
        else:
            output.table(("what", "now", "at most", ""), ((r.what, r.now, r.bound, r.says or "within") for r in rows))
    return NO if any(row.outgrown for row in rows) else OK


def _upgrade(args: argparse.Namespace) -> int:
    require("jinja2", "`headrace stack upgrade` needs Jinja2", "stack")
    from headrace.scaffold import upgrade

    plan = upgrade.plan(args.folder)
    if plan.idle and not plan.changes:
        output.note("nothing to do: what stack.yaml says of the generated files is what they are")
        return OK
    if not args.dry_run and not plan.idle:
        if not args.allow_dirty:
            upgrade.check_clean(args.folder)
        upgrade.apply(args.folder, plan)
    with streams.answer():
        output.table(("file", "what becomes of it"), ((c.path, c.fate) for c in plan.changes))
    before, after = plan.before, plan.rendering.lock
    output.note(f"template {before.template} of headrace {before.headrace} -> {after.template} of {after.headrace}")
    if args.dry_run:
        output.note("nothing was written")
    for step in plan.steps:
        output.note(step)
    if plan.conflicts:
        output.note(f"resolve the marked places in {', '.join(plan.conflicts)}")
    return NO if plan.conflicts else OK


def _schema(_: argparse.Namespace) -> int:
    from headrace.stack import manifest

    output.json(manifest.schema())
    return OK


def _explain_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("code", metavar="CODE", nargs="?", help="such as HR301; without one, all are listed")
    add_json(parser)


def _explain(args: argparse.Namespace) -> int:
    from headrace.stack import finding

    if args.code is None:
        if args.json:
            output.json(finding.TITLES)
        else:
            output.table(("code", "finding"), finding.TITLES.items())
        return OK
    page = finding.page(args.code.upper())
    if args.json:
        output.json({"code": args.code.upper(), "page": page})
    else:
        output.line(page.rstrip())
    return OK


COMMANDS = {"stack": Command(_arguments, _execute), "explain": Command(_explain_arguments, _explain)}

"""The house rules as functions over (module name, source): each returns messages that name the fix."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Mapping

LINES_MAX = 400
FUNCTION_LINES_MAX = 60
PARAMETERS_MAX = 8

RANKS: tuple[tuple[str, ...], ...] = (
    ("errors", "limits", "version"),
    ("settings", "backoff"),
    ("backends.contract", "backends.effects"),
    ("backends.entry", "backends.partition"),
    ("backends.memory", "backends.redis", "backends.kafka", "backends.nats", "backends.rabbitmq"),
    ("backends",),
    ("codec", "event", "effects", "retry"),
    ("topic", "context", "handler", "observe", "route", "serving", "transaction"),
    ("once",),
    ("runtime", "embedded"),
    ("testing",),
    ("app",),
    ("",),  # the package root: the public names
    ("demo",),
    ("stack",),
    ("scaffold",),
    ("cli", "console"),
    ("__main__",),
)
"""From the bottom up. A module may import what stands in a lower row, or its own unit; within a row only files of one folder meet."""

FREE_ROWS = (
    {"errors", "limits", "version"},
    {"settings", "backoff"},
    {"codec", "event", "effects", "retry"},
    {"topic", "context", "handler", "observe", "route", "serving", "transaction"},
)
"""Rows of single files that may know each other, as long as there is no circle."""

CLIENTS = {
    "redis": "backends.redis",
    "hiredis": "backends.redis",
    "valkey": "backends.redis",
    "confluent_kafka": "backends.kafka",
    "nats": "backends.nats",
    "aio_pika": "backends.rabbitmq",
}
BAD_NAMES = {"util", "utils", "common", "helpers", "helper", "manager", "managers", "base", "misc"}
BANNED = {  # each written so that it does not find itself
    r"/wor[k]/|/tmp/pla[n]": "a path of somebody's machine; say where it is relative to the repository",
    r"pypi\.or[g]|pythonhoste[d]|crates\.i[o]\b|registry\.npmj[s]|deb\.debia[n]": "the host of a package registry; name the registry instead",
    r"\bFIXM[E]\b|\bXX[X]\b|\bTOD[O]\b": "do it, or write an issue",
}
"""Patterns that no file of the repository holds, with what to do instead."""


def unit(module: str) -> str:
    """The entry of RANKS a module belongs to; module names are without the leading `headrace.`."""
    names = [name for row in RANKS for name in row if name and (module == name or module.startswith(name + "."))]
    return max(names, key=len) if names else module


def rank(module: str) -> int:
    """Its row."""
    own = unit(module)
    for number, row in enumerate(RANKS):
        if own in row:
            return number
    raise AssertionError(f"{module} has no place in RANKS: say on which floor it lives")


def imports(source: str) -> list[tuple[str, str]]:
    """Every import of a source as (module, name), with "" as the name of a plain one.

    Those in functions and under TYPE_CHECKING count too: they couple modules all the same.
    """
    found: list[tuple[str, str]] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [(alias.name, "") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            found += [(module, alias.name) for alias in node.names]
    return found


def own_imports(source: str, modules: Iterable[str]) -> set[str]:
    """Modules of ours that a source imports, without `headrace.`; `from headrace.a import b` is `a.b` if that is a module, else `a`."""
    known = set(modules) - {""}
    found = set()
    for module, name in imports(source):
        if module == "headrace" or module.startswith("headrace."):
            package = module.removeprefix("headrace").removeprefix(".")
            full = f"{package}.{name}".strip(".")
            found.add(full if full in known else package)
    return found & known


def size(module: str, source: str) -> list[str]:
    """Files and functions that outgrow their bounds."""
    out = []
    lines = source.count("\n") + 1
    if lines > LINES_MAX:
        out.append(
            f"{module}: {lines} lines; a file is one noun of at most {LINES_MAX}: find the second noun and give it a file"
        )
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            if length > FUNCTION_LINES_MAX:
                out.append(
                    f"{module}.{node.name}: {length} lines; at most {FUNCTION_LINES_MAX}: decide in one function, work in others"
                )
            arguments = [
                a.arg
                for a in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)
                if a.arg not in ("self", "cls")
            ]
            if len(arguments) > PARAMETERS_MAX:
                out.append(
                    f"{module}.{node.name}: {len(arguments)} parameters; at most {PARAMETERS_MAX}: make a frozen options object"
                )
    return out


def documented(module: str, source: str) -> list[str]:
    """A module says what it is for."""
    return (
        [] if ast.get_docstring(ast.parse(source)) else [f"{module}: has no docstring: say in one line what it is for"]
    )


def direction(module: str, source: str, modules: Iterable[str]) -> list[str]:
    """Imports point down."""
    out = []
    for other in sorted(own_imports(source, modules)):
        mine, its = rank(module), rank(other)
        if unit(other) == unit(module):
            continue
        if its > mine:
            out.append(f"{module} imports {other}, which is above it: move what both need down, or pass it in")
        elif its == mine and not any({unit(module), unit(other)} <= row for row in FREE_ROWS):
            out.append(
                f"{module} imports its sibling {other}: siblings do not know each other; move what both need down"
            )
    return out


def absolute(module: str, source: str, modules: Iterable[str]) -> list[str]:
    """Imports say where a thing lives: neither the package root, which is for users, nor a relative path."""
    known = set(modules)
    out = []
    for origin, name in imports(source):
        if origin.startswith("."):
            out.append(f"{module} imports {name} from {origin}: write the absolute name, headrace.<module>")
        elif origin == "headrace" and (not name or name not in known):
            out.append(f"{module} imports {name or 'headrace'} from the package root: import it from its own module")
    return out


def circles(sources: Mapping[str, str]) -> list[str]:
    """Import circles, imports inside functions and under TYPE_CHECKING included."""
    graph = {module: own_imports(source, sources) for module, source in sources.items()}
    done: set[str] = set()
    out: list[str] = []

    def visit(module: str, path: tuple[str, ...]) -> None:
        if module in path:
            out.append(
                "import circle: " + " -> ".join((*path[path.index(module) :], module)) + ": move what they share down"
            )
            return
        if module in done:
            return
        for other in sorted(graph.get(module, ())):
            visit(other, (*path, module))
        done.add(module)

    for module in sorted(graph):
        visit(module, ())
    return out


def clients(module: str, source: str) -> list[str]:
    """A broker's client library is imported by its own backend only."""
    return [
        f"{module} imports {name}: only {home} may; go through the contract"
        for name in sorted({origin.partition(".")[0] for origin, _ in imports(source)} & set(CLIENTS))
        if not f"{module}.".startswith(f"{(home := CLIENTS[name])}.")
    ]


def names(module: str) -> list[str]:
    """Modules are named after what they are."""
    return [f"{module}: {part} says nothing; name the tool" for part in module.split(".") if part in BAD_NAMES]


def excepts(module: str, source: str) -> list[str]:
    """No exception disappears without a word."""
    out = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ExceptHandler):
            if node.type is None:
                out.append(f"{module}:{node.lineno}: bare except: name what you expect")
            line = source.splitlines()[node.body[0].lineno - 1]
            if len(node.body) == 1 and isinstance(node.body[0], ast.Pass) and "#" not in line:
                out.append(f"{module}:{node.lineno}: except: pass without a reason beside it")
    return out


def title(name: str, text: str) -> list[str]:
    """A page of Markdown has one title."""
    prose = re.sub(r"^(```|~~~).*?^\1", "", text, flags=re.DOTALL | re.MULTILINE)
    count = len(re.findall(r"^# ", prose, flags=re.MULTILINE))
    return [] if count == 1 else [f"{name}: {count} titles: exactly one line starts with '# ', sections with '## '"]


def banned(name: str, text: str) -> list[str]:
    """The repository speaks of itself alone."""
    return [
        f"{name}:{text.count(chr(10), 0, found.start()) + 1}: {found.group()}: {advice}"
        for pattern, advice in BANNED.items()
        for found in re.finditer(pattern, text)
    ]

"""The house rules as functions over (module name, source): each returns messages that name the fix."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Mapping

LINES_MAX = 400
FUNCTION_LINES_MAX = 60
PARAMETERS_MAX = 8

RANKS: tuple[tuple[str, ...], ...] = (
    ("errors", "limits", "version"),
    ("settings", "backoff"),
    ("backends.contract", "backends.effects"),
    ("backends.redis", "backends.memory"),
    ("backends",),
    ("codec", "event", "effects", "retry"),
    ("topic", "context", "handler", "observe"),
    ("once",),
    ("runtime", "embedded"),
    ("testing",),
    ("app",),
    ("",),  # the package root: the public names
    ("demo",),
    ("cli",),
    ("__main__",),
)
"""From the bottom up. A module may import what stands in a lower row, or its own unit; within a row only files of one folder meet."""

FREE_ROWS = (
    {"errors", "limits", "version"},
    {"settings", "backoff"},
    {"codec", "event", "effects", "retry"},
    {"topic", "context", "handler", "observe"},
)
"""Rows of single files that may know each other, as long as there is no circle."""

BACKEND_LOW = 3
"""The row of the backends: they know nothing above it."""

CLIENTS = {
    "redis": "backends.redis",
    "hiredis": "backends.redis",
    "confluent_kafka": "backends.kafka",
    "nats": "backends.nats",
    "aio_pika": "backends.rabbitmq",
}
BAD_NAMES = {"util", "utils", "common", "helpers", "helper", "manager", "base", "misc"}


def unit(module: str) -> str:
    """The entry of RANKS a module belongs to; module names are without the leading `headrace.`."""
    names = [name for row in RANKS for name in row if name and (module == name or module.startswith(name + "."))]
    return max(names, key=len) if names else ("" if not module else module)


def rank(module: str) -> int:
    """Its row."""
    own = unit(module)
    for number, row in enumerate(RANKS):
        if own in row:
            return number
    raise AssertionError(f"{module} has no place in RANKS: say on which floor it lives")


def imports(source: str, *, runtime_only: bool = False) -> set[str]:
    """Modules that a source imports, anywhere in it; `runtime_only` leaves out those under TYPE_CHECKING."""
    tree = ast.parse(source)
    skipped: set[ast.AST] = set()
    if runtime_only:
        for node in ast.walk(tree):
            if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
                skipped.update(n for child in node.body for n in ast.walk(child))
    found: set[str] = set()
    for node in ast.walk(tree):
        if node in skipped:
            continue
        if isinstance(node, ast.Import):
            found.update(a.name for a in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found.update(f"{node.module}.{a.name}" for a in node.names)
    return found


def own_imports(source: str, modules: Iterable[str], *, runtime_only: bool = False) -> set[str]:
    """Those of them that are modules of ours, without `headrace.`."""
    known = set(modules)
    named = {
        name.removeprefix("headrace.")
        for name in imports(source, runtime_only=runtime_only)
        if name.startswith("headrace.")
    }
    found = {name for name in named if name in known}
    return {name for name in found if not any(other.startswith(name + ".") for other in found)}


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
    if (
        module
        and "headrace" in {name for name in imports(source) if name == "headrace"}
        and rank(module) <= rank("app")
    ):
        names = [
            a.name
            for node in ast.walk(ast.parse(source))
            if isinstance(node, ast.ImportFrom) and node.module == "headrace"
            for a in node.names
            if a.name not in modules
        ]
        out += [f"{module} imports {name} from the package root: import it from its own module" for name in names]
    return out


def circles(sources: Mapping[str, str]) -> list[str]:
    """Import circles, imports inside functions included."""
    graph = {module: own_imports(source, sources, runtime_only=True) for module, source in sources.items()}
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
        for name in sorted({n.partition(".")[0] for n in imports(source)} & set(CLIENTS))
        if not module.startswith(home := CLIENTS[name])
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

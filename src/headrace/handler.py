"""A user's function and what it was declared with."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable
from typing import Any

from msgspec import Struct

from headrace.codec import members
from headrace.context import Context
from headrace.errors import ConfigurationError
from headrace.retry import Retry


class Handler(Struct, frozen=True, eq=False):
    """One function for events of one topic in one group."""

    function: Callable[..., Any]
    name: str
    types: tuple[Any, ...]
    """The classes of events it takes."""
    asynchronous: bool
    """`async def`; else it runs in a thread."""
    batched: bool
    """It takes `list[Event]`."""
    with_context: bool
    """It takes a Context (or, batched, `list[Context]`) as second argument."""
    retry: Retry
    timeout_s: float | None


def examine(function: Callable[..., Any], event_type: Any, retry: Retry, timeout_s: float | None) -> Handler:
    """What a function wants, by its signature: `(event)`, `(event, ctx)`, `(list[Event])`, `(list[Event], list[Context])`.

    Raises ConfigurationError, naming the function and what was expected.
    """
    name = f"{getattr(function, '__module__', '?')}.{getattr(function, '__qualname__', repr(function))}"
    if not callable(function):
        raise ConfigurationError(f"{name}: expected a function, got {type(function).__name__}")
    if inspect.isasyncgenfunction(function) or inspect.isgeneratorfunction(function):
        raise ConfigurationError(f"{name}: expected a function that returns, got a generator")
    asynchronous = inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(
        getattr(function, "__call__", None)  # noqa: B004
    )
    if not asynchronous and inspect.iscoroutinefunction(inspect.unwrap(function, stop=inspect.iscoroutinefunction)):
        raise ConfigurationError(
            f"{name}: expected `async def`, got a plain function that a decorator has put around one; "
            "make the decorator's function `async def` too, and await in it"
        )
    parameters = [
        p
        for p in inspect.signature(function).parameters.values()
        if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
    ]
    required = [p for p in parameters if p.default is p.empty]
    if not parameters or len(required) > 2:  # noqa: PLR2004 - event and context
        raise ConfigurationError(f"{name}: expected (event) or (event, ctx), got {inspect.signature(function)}")
    hints = _hints(function, name)
    wanted = hints.get(parameters[0].name, event_type)
    batched = typing.get_origin(wanted) is list or wanted is list
    if batched:
        wanted = (typing.get_args(wanted) or (event_type,))[0]
    known = members(event_type)
    types = known if wanted is Any else members(wanted)
    strangers = [t for t in types if t not in known]
    if strangers:
        raise ConfigurationError(f"{name}: takes {_names(strangers)}, but the topic has {_names(known)}")
    return Handler(
        function=function,
        name=name,
        types=types,
        asynchronous=asynchronous,
        batched=batched,
        with_context=len(parameters) > 1 and (len(required) > 1 or _is_context(hints.get(parameters[1].name))),
        retry=retry,
        timeout_s=timeout_s,
    )


def _hints(function: Callable[..., Any], name: str) -> dict[str, Any]:
    try:
        return typing.get_type_hints(function if inspect.isroutine(function) else type(function).__call__)
    except NameError as e:
        raise ConfigurationError(
            f"{name}: its annotations cannot be read ({e}); define event classes at module level"
        ) from None


def _is_context(hint: Any) -> bool:
    return hint is Context or (typing.get_origin(hint) is list and typing.get_args(hint) == (Context,))


def _names(types: Any) -> str:
    return ", ".join(getattr(t, "__name__", str(t)) for t in types)

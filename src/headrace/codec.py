"""Bytes <-> events. JSON in the body; the event's class name in the `type` attribute.

A topic's type is a msgspec Struct, dataclass, TypedDict, pydantic model, `dict`, `bytes` (passed through), or a union of classes.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Callable
from typing import Any, Final

import msgspec

from headrace import limits
from headrace.backends.contract import Delivery
from headrace.errors import ConfigurationError, InvalidEvent, Undecodable

_encode: Final = msgspec.json.Encoder().encode
_ERRORS: Final = (msgspec.DecodeError, UnicodeDecodeError, ValueError, RecursionError)
"""What decoders raise for bad input; pydantic's ValidationError is a ValueError, msgspec's a DecodeError."""


class _Format(msgspec.Struct, frozen=True):
    """How one class is recognised, written and read."""

    cls: Any
    name: bytes
    encode: Callable[[Any], bytes]
    decode: Callable[[bytes], Any]
    check: Callable[[Any], bool]


def _format(cls: Any) -> _Format:
    name = getattr(cls, "__name__", str(cls)).encode()
    if cls is bytes:
        return _Format(cls, b"", bytes, bytes, lambda e: isinstance(e, bytes))
    if hasattr(cls, "model_validate_json") and hasattr(cls, "model_dump_json"):
        return _Format(
            cls, name, lambda e: e.model_dump_json().encode(), cls.model_validate_json, lambda e: isinstance(e, cls)
        )
    try:
        decode = msgspec.json.Decoder(cls).decode
    except TypeError as e:
        raise ConfigurationError(f"topic type {cls!r} cannot be sent as JSON: {e}") from None
    if typing.is_typeddict(cls):
        return _Format(cls, name, _encode, decode, lambda e: _fits(e, cls))
    if isinstance(cls, type) and (issubclass(cls, msgspec.Struct) or dataclasses.is_dataclass(cls)):
        return _Format(cls, name, _encode, decode, lambda e: isinstance(e, cls))
    return _Format(cls, b"", _encode, decode, lambda e: _fits(e, cls))


def _fits(event: Any, cls: Any) -> bool:
    try:
        msgspec.convert(event, cls)
    except msgspec.ValidationError:
        return False
    return True


def members(event_type: Any) -> tuple[Any, ...]:
    """The classes of a union, or the class itself."""
    if typing.get_origin(event_type) in (typing.Union, types.UnionType):
        return typing.get_args(event_type)
    return (event_type,)


class Codec:
    """The events of one topic."""

    def __init__(self, event_type: Any) -> None:
        """Raises ConfigurationError if events of this type cannot be sent, or told apart."""
        self._formats = [_format(cls) for cls in members(event_type)]
        self._by_name = {f.name: f for f in self._formats}
        self._only = self._formats[0] if len(self._formats) == 1 else None
        self._decode_only = self._only.decode if self._only else None
        self.types = tuple(f.cls for f in self._formats)
        nameless = any(not isinstance(f.cls, type) or typing.is_typeddict(f.cls) for f in self._formats)
        if not self._only and (nameless or len(self._by_name) < len(self._formats)):
            raise ConfigurationError(
                f"topic type {event_type}: the members of a union must be classes with different names, to be told apart"
            )

    def encode(self, event: Any) -> tuple[bytes, bytes]:
        """(type name, body). Raises InvalidEvent for an event of another type."""
        f = self._only or self._by_name.get(type(event).__name__.encode())
        if f is None or not (type(event) is f.cls or f.check(event)):
            expected = " or ".join(t.__name__ if isinstance(t, type) else str(t) for t in self.types)
            raise InvalidEvent(f"expected an event of type {expected}, got {type(event).__name__}: {event!r:.200}")
        try:
            return f.name, f.encode(event)
        except (TypeError, ValueError, OverflowError, RecursionError) as e:
            raise InvalidEvent(f"{type(event).__name__} cannot be sent as JSON: {e}") from None

    def decode(self, delivery: Delivery) -> Any:
        """The event of an entry. Raises Undecodable."""
        fields = delivery.fields
        if (count := len(fields)) > limits.entry_values_max:
            raise Undecodable(
                f"the entry has {count // 2} fields, and no event has more than {limits.entry_values_max // 2}"
            )
        body = fields[-1] if count > 1 and fields[-2] == b"data" else delivery.get(b"data")
        if body is None:
            raise Undecodable("the entry has no `data` field")
        decode = self._decode_only or self._decoder(delivery)
        try:
            return decode(body)
        except _ERRORS as e:
            raise Undecodable(f"{type(e).__name__}: {e}"[:500]) from None

    def _decoder(self, delivery: Delivery) -> Callable[[bytes], Any]:
        name = delivery.get(b"type") or b""
        f = self._by_name.get(name)
        if f is None:
            known = ", ".join(sorted(n.decode() for n in self._by_name))
            raise Undecodable(f"unknown event type {name.decode(errors='replace')!r}; this topic has {known}")
        return f.decode

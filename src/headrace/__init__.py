"""Headrace: events on the Redis or Valkey you have, each effect exactly once."""

from headrace.app import Headrace
from headrace.context import Context
from headrace.errors import (
    Closed,
    ConfigurationError,
    DurabilityError,
    HeadraceError,
    InvalidEvent,
    NotConnected,
    Overloaded,
    Refused,
    Reject,
)
from headrace.retry import Retry
from headrace.topic import Topic

__all__ = [
    "Closed",
    "ConfigurationError",
    "Context",
    "DurabilityError",
    "Headrace",
    "HeadraceError",
    "InvalidEvent",
    "NotConnected",
    "Overloaded",
    "Refused",
    "Reject",
    "Retry",
    "Topic",
]

"""Every exception Headrace raises on purpose.

    HeadraceError
    ├── ConfigurationError      a setting, name, URL or declaration is wrong; nothing was started
    │   └── DurabilityError     the server may forget what it acknowledges, and the configured level forbids that
    ├── InvalidEvent            publish() was given something it cannot send; nothing was written
    ├── BackendError            the server said no, or cannot be asked
    │   ├── NotConnected        no answer: the server is absent, restarting or cut off; may be repeated
    │   ├── Overloaded          the server or the topic is full; may be repeated later
    │   ├── Refused             the server will not do this, however often it is asked
    │   └── Closed              the app, feed or connection was closed by its owner
    └── HandlerError            how a handler ended, as seen by the runtime
        ├── Reject              raised by a handler: this event can never be handled; straight to the dead letters
        ├── DeadlineExceeded    the handler ran longer than its subscription allows
        └── Undecodable         the entry is not an event of this topic; straight to the dead letters

A backend raises the four `BackendError` leaves and no others.
Messages are written for the operator: what happened, what happens next, what to do.
"""

from __future__ import annotations


class HeadraceError(Exception):
    """Root of everything Headrace raises on purpose."""


class ConfigurationError(HeadraceError):
    """A setting, name, URL or declaration is wrong; nothing was started."""


class DurabilityError(ConfigurationError):
    """The server may forget what it acknowledges, and the configured level forbids that."""


class InvalidEvent(HeadraceError):
    """`publish()` was given something it cannot send; nothing was written."""


class BackendError(HeadraceError):
    """The server said no, or cannot be asked."""


class NotConnected(BackendError):
    """No answer: the server is absent, restarting or cut off. The same idempotent call may be repeated."""


class Overloaded(BackendError):
    """The server or the topic is full (OOM, BACKPRESSURE, disk). The same call may be repeated later."""


class Refused(BackendError):
    """The server will not do this, however often it is asked (permission, wrong type at a key, too old)."""


class Closed(BackendError):
    """The app, feed or connection was closed by its owner."""


class HandlerError(HeadraceError):
    """How a handler ended, as seen by the runtime."""


class Reject(HandlerError):
    """Raised by a handler: this event can never be handled. It goes straight to the dead letters."""


class DeadlineExceeded(HandlerError):
    """The handler ran longer than its subscription's `timeout_s`."""


class Undecodable(HandlerError):
    """The entry is not an event of this topic. It goes straight to the dead letters with its raw bytes."""

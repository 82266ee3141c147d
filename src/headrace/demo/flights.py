"""The demo's app: sums flights, departure delay and air time per carrier, and announces each flight that is more than two hours late.

Each run has topics of its own, named after HEADRACE_DEMO_RUN.
"""

from __future__ import annotations

import os
from datetime import datetime
from typing import Final

from msgspec import Struct

from headrace.app import Headrace
from headrace.context import Context

RUN: Final = os.environ.get("HEADRACE_DEMO_RUN", "0")
GROUP: Final = "totals"
TOTALS: Final = f"{{flights-{RUN}}}:totals"
"""hash: `UA:flights`, `UA:dep_delay`, `UA:air_time` -> sum, for each carrier."""
LATE_MIN: Final = 120
"""Minutes of departure delay; a flight is late above it."""

app = Headrace(lease_s=2.0)


class Flight(Struct):
    """One departure from New York."""

    carrier: str
    flight: int
    tailnum: str
    origin: str
    dest: str
    time: datetime
    distance: int
    """Miles."""
    dep_delay: int | None
    """Minutes, negative if early; None if it never left."""
    air_time: int | None
    """Minutes; None if it never landed as planned."""


class Late(Struct):
    """A flight left more than `LATE_MIN` minutes late."""

    carrier: str
    flight: int
    time: datetime
    dep_delay: int


flights = app.topic(f"flights-{RUN}", Flight)
late = app.topic(f"late-{RUN}", Late)


@flights.subscribe(GROUP)
async def add_up(flight: Flight, ctx: Context) -> None:
    """Everything it records leaves with the ack of this flight, or not at all."""
    delay = flight.dep_delay or 0
    ctx.redis.hincrby(TOTALS, f"{flight.carrier}:flights", 1)
    ctx.redis.hincrby(TOTALS, f"{flight.carrier}:dep_delay", delay)
    ctx.redis.hincrby(TOTALS, f"{flight.carrier}:air_time", flight.air_time or 0)
    if delay > LATE_MIN:
        ctx.publish(late, Late(flight.carrier, flight.flight, flight.time, delay))

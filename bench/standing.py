"""A worker that waits for events of an ordered group: `headrace run bench.standing:app`."""

from __future__ import annotations

import os

from bench.event import Order
from headrace import Headrace

app = Headrace(lease_s=float(os.environ.get("BENCH_LEASE_S", "15")))
orders = app.topic("orders", Order, key="order_id", partitions=16)


@orders.subscribe("bench", ordered=True)
async def handle(event: Order) -> None:
    """Nothing to do."""
    del event

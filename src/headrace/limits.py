"""Every bound in one place. Names end in their unit; relations between bounds are asserted below.

Sources: the batch bounds are the flat part of a measured curve (50 to 1,000 records a call);
`unpack_values_max` is what a server's Lua accepts (8,000 values fail, 7,990 work).
"""

from __future__ import annotations

import re
from typing import Final

NAME: Final = re.compile(r"[A-Za-z0-9._-]{1,128}")
"""Names of topics, groups and producers. No braces (they choose a Cluster slot), spaces or control characters."""

# One event
body_bytes_max: Final = 1 << 20
header_bytes_max: Final = 1 << 10
headers_max: Final = 64
entry_values_max: Final = 7_000
"""Names and values of an entry that is handled; one of another tool with more goes to the dead letters, which keep 7,900 of them (append.lua)."""
key_bytes_max: Final = 1 << 10
id_bytes_max: Final = 256
delay_s_max: Final = 366 * 86_400

# One call to the server
batch_records_max: Final = 1_000
batch_bytes_max: Final = 1 << 20
unpack_values_max: Final = 7_900
scripts_writes_max: Final = 1_000
"""Writes (outputs and effects) that one handled event may record."""

# Publisher
publish_records: Final = 500
"""Records per call when there are more: 250 to 500 is best for latency and rate."""
publish_window: Final = 2
"""Calls in flight; while they fly the next batch fills."""
packing_records: Final = 100
"""Events that share an entry, in a topic with packing."""
packing_bytes: Final = 64 << 10
"""Bytes of bodies that share an entry."""
publish_buffer_records_max: Final = 10_000
publish_buffer_bytes_max: Final = 16 << 20
producer_idle_s: Final = 7 * 86_400
"""A producer's high-water mark is forgotten after this long without a publish."""
id_window_s: Final = 86_400
"""How long a caller-given `id=` drops repeats."""

# Topic
number_max: Final = 10**12
"""For counts and seconds that a program may choose: more is a mistake, or infinity."""
cap_events: Final = 10_000_000
retain_events: Final = 1_000_000
retain_s: Final = 86_400

partitions_max: Final = 1_024
"""Each costs an ordered worker two commands per third of a lease, and a shared one a connection."""

# Worker
relay_records: Final = 1_000
"""Rows that a relay of an outbox sends at once."""
relay_lease_s: Final = 10.0
"""Another relay takes over when one was silent for this long."""
relay_poll_s: Final = 0.5
"""How often a relay looks for rows that nobody told it of."""
prune_s: Final = 3_600
"""How often a worker looks for what its inboxes can forget."""
database_pause_s: Final = 1.0
"""An event whose database is not there is handed back after this long."""
lanes: Final = 100
read_records_max: Final = 1_000
first_read_records: Final = 16
read_bytes: Final = 4 << 20
"""What one read should bring at most, by the average size of the events seen so far."""
block_s: Final = 5.0
lease_s: Final = 15.0
lease_s_min: Final = 0.5
lease_s_max: Final = 3_600.0
renewals_per_lease: Final = 3
commit_wait_s: Final = 0.01
"""How long a settled event waits for slower neighbours of its batch before it is committed without them."""
deaths_max: Final = 5
"""An event that was held by this many workers when they died rests in the dead letters."""
deaths_apart: Final = 2
"""From this many deaths on, the worker that took over an event takes nothing else until it is settled. One is most often a deployment."""
deaths_alone: Final = 4
"""From this many deaths on, an event is taken over without company, so that it kills nobody else; before, with 8 times less each time."""
aside_records_max: Final = 100_000
"""A partition in which this many events wait behind failed ones is read no further until they are fewer."""
timeout_s: Final = 600.0
stop_s: Final = 25.0
"""How long a worker waits at SIGTERM for handlers that run; what is left is handed back."""
leave_s: Final = 10.0
"""How long a stopping worker tries to hand back what is left; after that others take over when its leases end."""
abandon_s: Final = 5.0
"""A handler that ignores its cancellation for this long is left alone; its event is settled as failed."""

# Connection
connect_s: Final = 5.0
request_s: Final = 15.0
retry_first_s: Final = 0.05
retry_max_s: Final = 2.0
reasons_max: Final = 8
"""Different reasons of one outage that are logged."""
publish_wait_s: Final = 60.0
"""How long publish() keeps trying before it raises."""

assert publish_records <= batch_records_max
assert batch_records_max < unpack_values_max
assert body_bytes_max <= batch_bytes_max <= publish_buffer_bytes_max
assert lease_s_min <= lease_s <= lease_s_max
assert lease_s / renewals_per_lease >= 1
assert block_s < request_s
assert deaths_apart <= deaths_alone < deaths_max

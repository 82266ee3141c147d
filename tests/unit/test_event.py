"""What publish() refuses, before anything is written."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, TypedDict

import pydantic
import pytest
from msgspec import Struct

from headrace import ConfigurationError, Headrace, InvalidEvent
from headrace.backends.contract import Delivery
from headrace.errors import Undecodable


class Order(Struct):
    id: str
    customer: str | None
    cents: int


@dataclass
class Paid:
    order: str


class Shipped(TypedDict):
    order: str


class Returned(pydantic.BaseModel):
    order: str


def delivery(**fields: bytes) -> Delivery:
    return Delivery(b"1-1", [w for name, value in fields.items() for w in (name.encode(), value)], None)


@pytest.mark.parametrize(
    ("event_type", "event"),
    [
        (Order, Order("1", "ann", 3)),
        (Paid, Paid("1")),
        (Shipped, {"order": "1"}),
        (Returned, Returned(order="1")),
        (dict, {"a": [1]}),
        (bytes, b"\xff\x00"),
    ],
)
def test_events_travel_both_ways(event_type: Any, event: Any) -> None:
    topic = Headrace("memory://").topic("t", event_type)
    record = topic.record(event)
    assert topic.codec.decode(delivery(type=record.type, data=record.body)) == event


def test_members_of_a_union_are_told_apart() -> None:
    topic = Headrace("memory://").topic("t", Order | Paid | Returned)
    for event in (Order("1", "ann", 3), Paid("1"), Returned(order="1")):
        record = topic.record(event)
        assert record.type == type(event).__name__.encode()
        assert topic.codec.decode(delivery(type=record.type, data=record.body)) == event
    with pytest.raises(Undecodable, match="unknown event type 'Lost'"):
        topic.codec.decode(delivery(type=b"Lost", data=b"{}"))


def test_types_that_cannot_be_told_apart_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="told apart"):
        Headrace("memory://").topic("t", Order | Shipped)


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b'{"id":1}', b"\xff\xfe", b"[" * 100_000, b'{"id":"1","customer":"a","cents":1e400}']
)
def test_what_cannot_be_decoded_is_undecodable_and_nothing_else(body: bytes) -> None:
    topic = Headrace("memory://").topic("t", Order)
    with pytest.raises(Undecodable):
        topic.codec.decode(delivery(type=b"Order", data=body))


def test_an_entry_without_data_is_undecodable() -> None:
    with pytest.raises(Undecodable, match="no `data`"):
        Headrace("memory://").topic("t", Order).codec.decode(delivery(order=b"1"))


@pytest.mark.parametrize("name", ["", "a b", "a{b}", "a\n", "ä", "x" * 129, "a/b"])
def test_odd_names_are_refused(name: str) -> None:
    with pytest.raises(ConfigurationError, match="topic name"):
        Headrace("memory://").topic(name, Order)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"key": 1.5}, "key: expected text"),
        ({"key": "x" * 2000}, "key: expected at most"),
        ({"key": "\ud800"}, "UTF-8"),
        ({"id": ""}, "id: expected text"),
        ({"headers": {"Bad Name": "x"}}, "header name"),
        ({"headers": {"x": "y" * 2000}}, "header x: expected at most"),
        ({"headers": {f"h{i}": "" for i in range(65)}}, "at most 64"),
        ({"delay_s": -1}, "delay_s"),
        ({"delay_s": float("nan")}, "delay_s"),
        ({"at": datetime(2030, 1, 1)}, "time zone"),
        ({"at": datetime.now(UTC) + timedelta(days=900)}, "a year"),
        ({"at": datetime.now(UTC), "delay_s": 1}, "got both"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], match: str) -> None:
    with pytest.raises(InvalidEvent, match=match):
        Headrace("memory://").topic("t", Order).record(Order("1", "ann", 1), **options)


def test_wrong_and_oversized_events_are_refused() -> None:
    app = Headrace("memory://")
    topic = app.topic("t", Order)
    with pytest.raises(InvalidEvent, match="expected an event of type Order, got Paid"):
        topic.record(Paid("1"))
    with pytest.raises(InvalidEvent, match="at most 1,048,576"):
        topic.record(Order("x" * (1 << 20), None, 1))
    with pytest.raises(InvalidEvent, match="expected an event of type Shipped"):
        app.topic("s", Shipped).record({"order": 5})


def test_a_topic_with_a_key_takes_it_from_the_event() -> None:
    app = Headrace("memory://")
    topic = app.topic("t", Order, key="customer")
    assert topic.record(Order("1", "ann", 1)).key == b"ann"
    assert topic.record(Order("1", "ann", 1), key="bob").key == b"bob"
    with pytest.raises(InvalidEvent, match="'customer' of this event is None"):
        topic.record(Order("1", None, 1))
    assert app.topic("u", Order, key=lambda o: o.cents).record(Order("1", None, 7)).key == b"7"


def test_publishing_outside_the_app_says_so() -> None:
    topic = Headrace("memory://").topic("t", Order)
    with pytest.raises(Exception, match="publish inside `async with app:`"):
        asyncio.run(topic.publish(Order("1", "ann", 1)))


def test_settings_name_what_was_expected() -> None:
    with pytest.raises(ConfigurationError, match="durability: expected one of fsync, quorum, relaxed, got 'fast'"):
        Headrace(durability="fast")
    with pytest.raises(ConfigurationError, match="declared twice"):
        app = Headrace("memory://")
        app.topic("t", Order)
        app.topic("t", Order)
    with pytest.raises(ConfigurationError, match="cap_events"):
        Headrace("memory://").topic("t", Order, cap_events=0)
    with pytest.raises(ConfigurationError, match="keep_for_first_group: expected True or False, got 'no'"):
        Headrace("memory://").topic("t", Order, keep_for_first_group="no")  # type: ignore[call-overload]
    with pytest.raises(ConfigurationError, match="lease_s"):
        Headrace(lease_s=0.1)

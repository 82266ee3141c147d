"""Which partition an event belongs to: the same on every backend, in every language, for ever."""

from __future__ import annotations

from zlib import crc32


def partition_of(key: bytes, partitions: int) -> int:
    """The partition of a key, from 0: CRC-32 (IEEE 802.3, as in zlib) modulo the number of partitions.

    It is what librdkafka calls the `consistent` partitioner, so a topic that moves to Kafka can keep its layout.
    """
    return crc32(key) % partitions


def streams(topic: str, partitions: int) -> list[str]:
    """The names of a topic's partitions: the topic itself if it has one, else `topic.0`, `topic.1` and so on."""
    return [topic] if partitions == 1 else [f"{topic}.{n}" for n in range(partitions)]

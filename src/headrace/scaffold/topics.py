"""What a change of a service's topics asks of servers that have them already: `upgrade` changes files, and nothing there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from headrace.stack.manifest import Consumer, Stream


def steps(before: Sequence[Stream], after: Sequence[Stream], service: str) -> list[str]:
    """What has to be done before a program with the new topics runs, or that it cannot be; in the order of the topics."""
    known = {stream.name: stream for stream in before}
    changed = [(known[new.name], new) for new in after if new.name in known]
    return [step for old, new in changed for step in (*_partitions(old, new), *_mode(old, new, service))]


def _partitions(old: Stream, new: Stream) -> Iterator[str]:
    topic, had, asked = new.name, old.partitions, new.partitions
    if had == asked:
        return
    if had == 1:
        yield (
            f"topic {topic} has one partition where it exists, which never becomes several: programs that declare {asked} are refused. "
            "Say partitions: 1 again, or give the topic another name"
        )
    elif asked < had or asked % had:
        yield (
            f"topic {topic} has {had} partitions where it exists, which never become {asked}: programs that declare {asked} are refused. "
            f"Say {had}, or a multiple of it"
        )
    else:
        yield (
            f"where topic {topic} exists, give it its partitions first, while programs use it: `headrace partitions {topic} {asked}`; "
            f"until then programs that declare {asked} are refused"
        )


def _mode(old: Stream, new: Stream, service: str) -> Iterator[str]:
    group = new.group or service
    had, asked = (stream.consumer or Consumer() for stream in (old, new))
    if (old.group or service) == group and had.ordered != asked.ordered:
        yield (
            f"group {group} of topic {new.name} is {'ordered' if had.ordered else 'shared'} for good where it exists: its workers are refused. "
            f"Name another group, or stop all of its workers and begin anew: `headrace groups {new.name} --reset {group} --to PLACE`"
        )

"""Memory servers that are broken on purpose, each in one way. The conformance suite is as good as the mutants that it catches.

A mutant's docstring says what is wrong with it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from headrace.backends.memory.server import MemoryServer
from tests.conformance import mutants_giving as giving
from tests.conformance import mutants_settling as settling

MUTANTS: Final[Mapping[type[MemoryServer], str]] = {
    settling.AckBeforeCommit: "the_events_of_a_dead_worker_are_taken_over",
    settling.NoGate: "a_late_commit_writes_nothing",
    settling.OutputBeforeGate: "a_late_commit_writes_nothing",
    settling.EffectBeforeGate: "a_late_commit_writes_nothing",
    settling.EffectsHalfWritten: "a_wrong_type_is_refused",
    settling.EffectsIgnored: "a_wrong_type_is_refused",
    settling.RefusedIsLost: "a_wrong_type_is_refused",
    settling.NoIds: "a_repeated_id_is_dropped",
    settling.IdsForEver: "an_id_is_forgotten_after_its_window",
    settling.RetryLost: "a_retry_comes_after_its_delay",
    settling.RetryAtOnce: "a_retry_comes_after_its_delay",
    settling.RetryForgetsAttempts: "a_retry_comes_after_its_delay",
    settling.RetryWithNewId: "a_retry_comes_after_its_delay",
    settling.RetryForEveryGroup: "a_retry_comes_after_its_delay",
    settling.ReturnBurnsAttempt: "a_returned_event_is_there_at_once",
    settling.ReturnIsLost: "a_returned_event_is_there_at_once",
    settling.DeadWithoutBytes: "a_dead_letter_keeps_everything",
    settling.DeadWithoutReason: "a_dead_letter_keeps_everything",
    settling.DeadComesAgain: "a_dead_letter_keeps_everything",
    giving.TakeoverTooEarly: "the_events_of_a_dead_worker_are_taken_over",
    giving.TakeoverOfTheLiving: "a_long_handler_keeps_its_events",
    giving.NoTakeover: "the_events_of_a_dead_worker_are_taken_over",
    giving.TakeoverFromOtherGroups: "groups_do_not_take_over_from_each_other",
    giving.TakeoverCostsAttempt: "the_events_of_a_dead_worker_are_taken_over",
    giving.PoisonForEver: "an_event_that_kills_workers_ends_in_the_dead_letters",
    giving.PoisonInCompany: "an_event_that_kills_workers_ends_in_the_dead_letters",
    giving.HandBackIsLost: "closing_a_feed_hands_back_at_once",
    giving.HandBackBurnsAttempt: "closing_a_feed_hands_back_at_once",
    giving.NoHandBack: "closing_a_feed_hands_back_at_once",
    giving.TrimsPending: "what_a_group_needs_is_not_trimmed",
    giving.TrimsForTheFastest: "what_a_group_needs_is_not_trimmed",
    giving.WaitsForTheFirstGroup: "an_output_that_nobody_waits_for_is_written",
    giving.NeverTrims: "settled_events_are_trimmed",
    giving.NoCap: "a_full_topic_refuses_more",
    giving.DropsAtTheCap: "a_full_topic_refuses_more",
    giving.CapAfterWrite: "a_full_topic_refuses_more",
    giving.PromotesEarly: "a_delayed_event_comes_when_it_is_due",
    giving.DelayIgnored: "a_delayed_event_comes_when_it_is_due",
    giving.DelayedTwice: "delayed_events_come_in_order_of_time",
    giving.LimitIgnored: "take_respects_its_limit",
    giving.NoGroups: "every_group_gets_everything",
    giving.NoSharing: "workers_of_a_group_share",
    giving.StartAgain: "earliest_begins_with_what_is_there",
    giving.AlwaysEarliest: "latest_begins_with_what_comes",
    giving.HeadersLost: "events_arrive_in_order_with_their_fields",
    giving.CommitStopsAtTheFirst: "a_mixed_batch_settles_what_is_still_ours",
    giving.HandledNotCounted: "one_commit_settles_in_every_way",
    giving.PublishesTwice: "publishing_needs_no_group",
    giving.NewestFirst: "events_arrive_in_order_with_their_fields",
}
"""Each of them, and a scenario that catches it."""

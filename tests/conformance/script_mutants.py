"""Server scripts that are broken on purpose, each in one place, and the scenario that must catch each."""

from __future__ import annotations

from typing import Final

from msgspec import Struct


class ScriptMutant(Struct, frozen=True):
    """One edit of one script."""

    name: str
    script: str
    old: str
    new: str
    caught_by: str


MUTANTS: Final = (
    ScriptMutant(
        "no gate for writes",
        "commit",
        "mine = call('XACK', source, group, ARGV[i]) == 1",
        "mine = true; call('XACK', source, group, ARGV[i])",
        "a_late_commit_writes_nothing",
    ),
    ScriptMutant(
        "proof without looking",
        "commit",
        "local proven = false",
        "local proven = held >= 0",
        "a_late_commit_writes_nothing",
    ),
    ScriptMutant(
        "writes unchecked",
        "commit",
        "local function check(p, stop)",
        "local function check() end local function unused(p, stop)",
        "a_wrong_type_is_refused",
    ),
    ScriptMutant(
        "lost retry row",
        "commit",
        "keep(KEYS[5], clock() + tonumber(ARGV[p + 1]), ARGV, p + 3, p + 2 + argc)",
        "",
        "a_retry_comes_after_its_delay",
    ),
    ScriptMutant(
        "dead letters live on",
        "commit",
        "op == 'B' and KEYS[2] or KEYS[4]",
        "KEYS[2]",
        "a_dead_letter_keeps_everything",
    ),
    ScriptMutant(
        "ids not remembered",
        "publish",
        "fresh = call('ZADD', KEYS[4], 'NX', fmt('%d', now + window), id) == 1",
        "fresh = true",
        "a_repeated_id_is_dropped",
    ),
    ScriptMutant("cap ignored", "publish", "> tonumber(ARGV[5]) then", "> 1e15 then", "a_full_topic_refuses_more"),
    ScriptMutant(
        "due at once",
        "tend",
        "if tonumber(head[2]) <= now then",
        "if true then now = now + 1e9",
        "a_delayed_event_comes_when_it_is_due",
    ),
    ScriptMutant(
        "takeover before the lease ends",
        "claim",
        "(lease and lease < now)",
        "(lease and lease < now + 1e6)",
        "a_long_handler_keeps_its_events",
    ),
    ScriptMutant(
        "deaths not counted",
        "claim",
        "local entries = call('XCLAIM', KEYS[source], group, me, 0, unpack(ids))",
        "local w = {'XCLAIM', KEYS[source], group, me, 0} for _, id in ipairs(ids) do w[#w + 1] = id end w[#w + 1] = 'RETRYCOUNT' w[#w + 1] = 1 local entries = call(unpack(w))",
        "an_event_that_kills_workers_ends_in_the_dead_letters",
    ),
    ScriptMutant(
        "trim over what a group needs",
        "trim",
        "local ms, seq = low_ms, low_seq",
        "local ms, seq = now * 2, 0",
        "what_a_group_needs_is_not_trimmed",
    ),
    ScriptMutant(
        "kept for the first group in any case",
        "trim",
        "(not exists or ARGV[4] ~= '1')",
        "true",
        "what_nobody_waits_for_does_not_fill_its_topic",
    ),
    ScriptMutant(
        "trim over what the first group needs",
        "trim",
        "and not low_ms then",
        "and ARGV[4] == '1' then",
        "what_nobody_waits_for_does_not_fill_its_topic",
    ),
    ScriptMutant("hand back lost", "leave", "append(KEYS[2], a)", "", "closing_a_feed_hands_back_at_once"),
    ScriptMutant(
        "hand back burns an attempt", "leave", "'attempt', '1'", "'attempt', '2'", "closing_a_feed_hands_back_at_once"
    ),
    ScriptMutant("start ignored", "join", "create(ARGV[4])", "create('0')", "latest_begins_with_what_comes"),
    ScriptMutant(
        "neither token nor cursor looked at",
        "advance",
        """if record[1] ~= ARGV[2] then return redis.error_reply('FENCED ' .. (call('HGET', KEYS[3], 'owner') or 'nobody') .. ' has the lease') end
local moves = ARGV[3] ~= ARGV[4]
local done = moves and record[2] == ARGV[4]                     -- a repeated call: its answer was lost
if moves and not done and record[2] ~= ARGV[3] then return redis.error_reply('CURSOR ' .. (record[2] or 'lost')) end""",
        "local moves, done = ARGV[3] ~= ARGV[4], false",
        "an_ordered_worker_writes_nothing_after_its_lease",
    ),
    ScriptMutant(
        "a partition is taken from the living",
        "lease",
        "owner ~= ARGV[2] and till > now then return",
        "owner ~= ARGV[2] and till > now + 1e6 then return",
        "an_ordered_worker_keeps_what_it_has_in_hand",
    ),
    ScriptMutant(
        "a partition is not given back",
        "lease",
        "call('HSET', KEYS[1], 'owner', '', 'until', 0, 'trying', '')",
        "",
        "a_stopped_ordered_worker_hands_over_at_once",
    ),
    ScriptMutant(
        "the cursor stays",
        "advance",
        "call('HSET', KEYS[3], 'cursor', ARGV[4], 'read', read, 'until', t_end, 'commits', commits)",
        "call('HSET', KEYS[3], 'read', read, 'until', t_end, 'commits', commits)",
        "a_stopped_ordered_worker_hands_over_at_once",
    ),
    ScriptMutant(
        "what is set aside is lost",
        "advance",
        "append(KEYS[2], slice({'due', fmt('%d', clock() + tonumber(ARGV[p + 1]))}, p + 3, p + 2 + argc))",
        "",
        "what_waits_in_order_survives_its_worker",
    ),
    ScriptMutant(
        "what was set aside comes again for ever",
        "advance",
        "if i > nm then call('XDEL', KEYS[2], ARGV[11 + i - nm]) end",
        "",
        "a_failed_event_is_not_overtaken_by_its_key",
    ),
    ScriptMutant(
        "what is set aside is due at once",
        "advance",
        "'due', fmt('%d', clock() + tonumber(ARGV[p + 1]))",
        "'due', '0'",
        "a_failed_event_is_not_overtaken_by_its_key",
    ),
    ScriptMutant("handled not counted", "commit", "handled = np\n", "handled = 0\n", "commit_settles"),
)

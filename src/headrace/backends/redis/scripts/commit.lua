#!lua flags=allow-oom
-- Settles deliveries of one stream. What an entry writes is written only if the entry is still pending: the first to settle it wins.
-- KEYS  1 stream they were read from (the topic's or the group's retry stream)  2 retry  3 record  4 dead  5 delayed:G
--       6... the keys that outputs (stream, delayed, ids, packed: four in a row per topic) and effects name by their place here
-- ARGV  1 group  2 consumer  3 how many entries the consumer holds (-1: unknown)  4 number without writes  5 number with writes
--       6... ids without writes, ids with writes; then per entry with writes: how many of its events were handled, how many it has (1, or
--       as many as are packed into it), number of words that follow, writes:
--         E place argc command arguments...                                  an effect on KEYS[place]
--         O place cap window-ms of given-id due argc fields...               an output to the topic whose stream is KEYS[place]
--         Z delay-ms argc fields...   B argc fields...   D argc fields...    a copy: later to the retry stream, now to it, to the dead letters
-- Returns {settled, ids that others had settled, {id, place, why, ...} of entries whose writes cannot be made: those are untouched}; the
--          place (from 0) is that of the first word of the write that cannot.
-- Errors: BACKPRESSURE (an output's topic is at its cap), GREW n (it has n partitions, not `of`; 0: it is getting more right now). Then nothing
--         was written.
local call, source, group = redis.call, KEYS[1], ARGV[1]
local held, np, nr, total = tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5]), #ARGV
local retry_source = source == KEYS[2]
local lost, refused, won, handled, extra = {}, {}, 0, 0, 0
-- include append
-- include keep
-- include writes
-- One proof instead of a gate per entry: each consumer name is one read buffer, so if it has as many pending entries as the client holds,
-- these are the same entries (they leave only by XACK or a claim, they enter only by reads of the holder).
local first_rich = 6 + np
local q0 = first_rich + nr
local proven = false
if held >= 0 then
  for _, c in ipairs(call('XPENDING', source, group)[4] or {}) do
    if c[1] == ARGV[2] then proven = tonumber(c[2]) == held and np + nr <= held end
  end
end
local q = q0
for _ = 1, nr do                                               -- all checks at once; one that fails sends each entry through its own gate
  local stop = q + 2 + tonumber(ARGV[q + 2])
  local why, all = check(q + 3, stop)
  if why and all then return redis.error_reply(why) end
  if why then proven = false end
  q = stop + 1
end
if proven then
  won = call('XACK', source, group, unpack(ARGV, 6, q0 - 1))
  if won ~= np + nr then return redis.error_reply('INVALID ' .. won .. ' of ' .. (np + nr) .. ' entries were pending') end
  if retry_source then call('XDEL', source, unpack(ARGV, 6, q0 - 1)) end
  handled = np
else
  for i = 6, first_rich - 1 do
    if call('XACK', source, group, ARGV[i]) == 1 then
      won = won + 1
      handled = handled + 1
      if retry_source then call('XDEL', source, ARGV[i]) end
    else lost[#lost + 1] = ARGV[i] end
  end
end
q = q0
room = {}
for i = first_rich, q0 - 1 do
  local stop = q + 2 + tonumber(ARGV[q + 2])
  local mine = proven
  if not proven then
    states = {}
    local why, _, place = check(q + 3, stop)
    if why then
      refused[#refused + 1] = ARGV[i]
      refused[#refused + 1] = place - q - 3
      refused[#refused + 1] = why
    else
      mine = call('XACK', source, group, ARGV[i]) == 1
      if mine then
        won = won + 1
        if retry_source then call('XDEL', source, ARGV[i]) end
      else lost[#lost + 1] = ARGV[i] end
    end
  end
  if mine then
    handled = handled + tonumber(ARGV[q])
    extra = extra + tonumber(ARGV[q + 1]) - 1
    apply(q + 3, stop)
  end
  q = stop + 1
end
if handled > 0 then call('HINCRBY', KEYS[3], 'handled', handled) end
if extra > 0 then call('HINCRBY', KEYS[3], 'extra_settled', extra) end
return {won, lost, refused}

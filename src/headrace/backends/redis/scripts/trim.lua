#!lua flags=allow-oom
-- Trims what every group is done with and nobody wants to replay. Never above the oldest entry that any group has still to settle.
-- KEYS  1 stream  2 record  3 packed     ARGV  1 entries kept for replay  2 age kept for replay, ms  3 how many entries at most in one call
--       4 1 if, while no group exists, the two bounds alone decide; else all is kept for the first
-- Returns {trimmed, 1 if there is more to trim}.
local call, stream = redis.call, KEYS[1]
local exists = call('EXISTS', stream) == 1
local packed = call('HMGET', KEYS[3], 'extra', 'gone', 'newest')
local extra = tonumber(packed[1] or 0)
local function split(id)
  local ms, seq = string.match(id, '^(%d+)-(%d+)$')
  return tonumber(ms), tonumber(seq)
end
local function before(ms, seq, other_ms, other_seq) return ms < other_ms or (ms == other_ms and seq < other_seq) end
local function note_gone()                                      -- what packed entries that are no longer there had beyond one event each
  for _, count in ipairs(extra > 0 and {1, 100} or {}) do       -- the first entry most often says it
    local page = exists and call('XRANGE', stream, '-', '+', 'COUNT', count) or {}
    local ms, seq = split(packed[3] or '')
    if ms and page[1] and before(ms, seq, split(page[1][1])) then return call('HSET', KEYS[3], 'gone', extra) end  -- no packed entry is left
    for _, entry in ipairs(page) do
      if entry[2][3] == 'events' and entry[2][5] == 'before' then return call('HSET', KEYS[3], 'gone', entry[2][6]) end
    end
    if #page < count then return call('HSET', KEYS[3], 'gone', extra) end
  end
end
local groups = exists and call('XINFO', 'GROUPS', stream) or {}
if #groups == 0 and (not exists or ARGV[4] ~= '1') then         -- nobody has read anything yet
  note_gone()
  return {0, 0}
end
local t = call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local low_ms, low_seq                                          -- the oldest entry that must stay
for _, info in ipairs(groups) do
  local name, done
  for i = 1, #info, 2 do
    if info[i] == 'name' then name = info[i + 1] elseif info[i] == 'last-delivered-id' then done = info[i + 1] end
  end
  local pending = call('XPENDING', stream, name)
  local ms, seq
  if pending[1] > 0 then ms, seq = split(pending[2]) else ms, seq = split(done); seq = seq + 1 end
  if not low_ms or before(ms, seq, low_ms, low_seq) then low_ms, low_seq = ms, seq end
end
local facts = call('XINFO', 'STREAM', stream)
for i = 1, #facts, 2 do
  if facts[i] == 'last-generated-id' and not low_ms then low_ms, low_seq = split(facts[i + 1]); low_seq = low_seq + 1 end
  if facts[i] == 'entries-added' and call('EXISTS', KEYS[2]) == 1 then call('HSET', KEYS[2], 'added', facts[i + 1]) end
end
local limit, trimmed, length = tonumber(ARGV[3]), 0, call('XLEN', stream)
local function id(ms, seq) return string.format('%d-%d', ms, seq) end
local events = length + extra - tonumber(packed[2] or 0)
local excess = events - tonumber(ARGV[1])
if extra > 0 and excess < events then excess = math.floor(excess * length / events) - 1 end  -- in entries, by their average, and rather one less
if excess > 0 then trimmed = call('XTRIM', stream, 'MINID', '~', id(low_ms, low_seq), 'LIMIT', math.min(excess, limit)) end
excess = excess - trimmed
if excess > 0 and excess <= 200 and trimmed < limit then       -- less than a node of the stream: exactly
  local rows = call('XRANGE', stream, '-', '+', 'COUNT', excess + 1)
  local ms, seq = low_ms, low_seq
  if rows[excess + 1] then
    local m, q = split(rows[excess + 1][1])
    if before(m, q, ms, seq) then ms, seq = m, q end
  end
  trimmed = trimmed + call('XTRIM', stream, 'MINID', id(ms, seq))
end
local aged = math.max(now - tonumber(ARGV[2]), 0)
if aged < low_ms then low_ms, low_seq = aged, 0 end
if trimmed < limit then trimmed = trimmed + call('XTRIM', stream, 'MINID', '~', id(low_ms, low_seq), 'LIMIT', limit - trimmed) end
note_gone()
return {trimmed, trimmed >= limit and 1 or 0}

#!lua flags=no-writes
-- Where every event of a topic stands for one group, in one moment.
-- KEYS  1 stream  2 record  3 retry  4 delayed  5 delayed:G  6 dead  7 workers  8 packed     ARGV  1 group  2 trust: 1 if the server keeps entries-read over a restart (Valkey does, Redis 7.0 does not)
-- Returns {added, origin, replayed, handled, dead, dropped, pending, entries-read or -1 (unknown), delayed, retrying, live workers, oldest unsettled id or '',
--          1 in ordered mode (then the record says what is read) or 0,
--          and of packed entries the events beyond one each: published, unread, pending}.
local call, stream = redis.call, KEYS[1]
local function pairs_of(flat)
  local map = {}
  for i = 1, #flat, 2 do map[flat[i]] = flat[i + 1] end
  return map
end
-- include extra
local facts = pairs_of(call('XINFO', 'STREAM', KEYS[1]))
local added = facts['entries-added']
local info
for _, flat in ipairs(call('XINFO', 'GROUPS', KEYS[1])) do
  local g = pairs_of(flat)
  if g.name == ARGV[1] then info = g end
end
if not info then return redis.error_reply('NOGROUP ' .. ARGV[1]) end
local record = call('HMGET', KEYS[2], 'origin', 'replayed', 'handled', 'dropped', 'extra_origin', 'extra_settled', 'mode', 'cursor', 'read')
local ordered = record[7] == 'ordered'
local place = ordered and record[8] or info['last-delivered-id']
local pending = call('XPENDING', KEYS[1], ARGV[1])
local ahead_of = call('XRANGE', KEYS[1], '(' .. place, '+', 'COUNT', 1)[1]
local oldest = pending[1] > 0 and pending[2] or ahead_of and ahead_of[1] or ''
local t = call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local function size(command, key) return call('EXISTS', key) == 1 and call(command, key) or 0 end
local read = info['entries-read']
if ordered then read = tonumber(record[9])
elseif type(read) ~= 'number' or ARGV[2] ~= '1' then             -- lost by the server (a restart, a foreign XDEL or SETID): count what is ahead, within reason
  local unread, after = 0, info['last-delivered-id']
  repeat
    local page = call('XRANGE', KEYS[1], '(' .. after, '+', 'COUNT', 100)
    unread = unread + #page
    if page[1] then after = page[#page][1] end
  until #page < 100 or unread >= 100000
  read = unread < 100000 and added - unread or -1
end
if not ahead_of then read = added                                 -- what others took away is not unread, but missing
elseif ahead_of[1] == facts['first-entry'][1] then read = added - facts.length end
local extra, ahead = tonumber(call('HGET', KEYS[8], 'extra') or 0), extra_before(KEYS[8], '(' .. place)
return {added, tonumber(record[1] or -1), tonumber(record[2] or 0), tonumber(record[3] or 0), size('XLEN', KEYS[6]), tonumber(record[4] or 0),
  pending[1], read, size('ZCARD', KEYS[4]), size('ZCARD', KEYS[5]) + size('XLEN', KEYS[3]),
  call('ZCOUNT', KEYS[7], string.format('%d', now), '+inf'), oldest, ordered and 1 or 0,
  extra - tonumber(record[5] or 0), extra - ahead, ahead - tonumber(record[5] or 0) - tonumber(record[6] or 0)}

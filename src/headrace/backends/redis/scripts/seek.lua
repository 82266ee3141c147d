#!lua flags=allow-oom
-- An operator starts a group anew; its ledger begins here; dead letters and retries stay, but for events set aside in ordered mode that are read again.
-- KEYS  1 stream  2 record  3 retry  4 dead  5 delayed:G  6 packed     ARGV  1 group  2 where: 0, $ or the id after which it reads on
local call, stream, group = redis.call, KEYS[1], ARGV[1]
local added, length = 0, 0
if call('EXISTS', stream) == 1 then
  local flat = call('XINFO', 'STREAM', stream)
  for i = 1, #flat, 2 do if flat[i] == 'entries-added' then added = flat[i + 1] end end
  length = call('XLEN', stream)
end
-- include extra
-- include pages
local place = '(' .. ARGV[2]
if ARGV[2] == '0' then place = '-' elseif ARGV[2] == '$' then place = '+' end
local extra_origin = place == '+' and call('HGET', KEYS[6], 'extra') or extra_before(KEYS[6], place)
local origin
if ARGV[2] == '0' then origin = added - length
elseif ARGV[2] == '$' then origin = added
else origin = added - count_behind(ARGV[2]) end
redis.pcall('XGROUP', 'DESTROY', stream, group)
call('XGROUP', 'CREATE', stream, group, ARGV[2], 'MKSTREAM', 'ENTRIESREAD', origin)
if ARGV[2] ~= '$' and call('HGET', KEYS[2], 'mode') == 'ordered' then  -- what is read again is not there a second time, ahead of those before it
  local after_ms, after_seq = string.match(ARGV[2], '^(%d+)-?(%d*)')
  after_ms, after_seq = tonumber(after_ms), tonumber(after_seq) or 0
  each(KEYS[3], '-', function(aside)
    local entry
    for i = 1, #aside[2], 2 do if aside[2][i] == 'origin' then entry = string.match(aside[2][i + 1], '^%d+%-%d+') end end
    if not entry then return end
    local ms, seq = string.match(entry, '^(%d+)-(%d+)$')
    ms, seq = tonumber(ms), tonumber(seq)
    if (ms > after_ms or (ms == after_ms and seq > after_seq)) and #call('XRANGE', stream, entry, entry) == 1 then
      call('XDEL', KEYS[3], aside[1])
    end
  end)
end
local carried = 0
if call('EXISTS', KEYS[3]) == 1 then carried = carried + call('XLEN', KEYS[3]) end
if call('EXISTS', KEYS[4]) == 1 then carried = carried + call('XLEN', KEYS[4]) end
if call('EXISTS', KEYS[5]) == 1 then carried = carried + call('ZCARD', KEYS[5]) end
call('DEL', KEYS[2])
redis.pcall('XGROUP', 'DESTROY', KEYS[3], group)               -- what workers have in hand of the retries, too, is not theirs any more
redis.pcall('XGROUP', 'CREATE', KEYS[3], group, '0', 'MKSTREAM')
local t = call('TIME')
call('HSET', KEYS[2], 'origin', origin, 'replayed', carried, 'added', added, 'created', string.format('%d', t[1] * 1000 + math.floor(t[2] / 1000)),
  'extra_origin', extra_origin or 0, 'extra_settled', 0)
return origin

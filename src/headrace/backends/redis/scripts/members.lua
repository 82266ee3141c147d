#!lua flags=allow-oom
-- Who serves a group in ordered mode: the live workers share the partitions. A hint only; what is safe is decided by the leases.
-- KEYS  1 workers  2 changes     ARGV  1 worker  2 lease ms  3 how: stay, leave, or tell (stay, and let the others look: a partition is free)
-- Returns {live workers, ms until the first lease of a worker ends or -1, id of the last change}. A change is an entry in the stream of changes: whoever
-- waits for it by XREAD looks again at once.
local call = redis.call
local t = call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local fmt = string.format
local changed = call('ZREMRANGEBYSCORE', KEYS[1], '-inf', fmt('%d', now)) > 0
if ARGV[3] == 'leave' then changed = call('ZREM', KEYS[1], ARGV[1]) == 1 or changed
else changed = call('ZADD', KEYS[1], fmt('%d', now + ARGV[2]), ARGV[1]) == 1 or changed end
if changed or ARGV[3] == 'tell' then
  call('XADD', KEYS[2], 'MAXLEN', 1, '*', 'worker', ARGV[1])
  call('PEXPIRE', KEYS[2], 86400000)
end
local last = '0-0'
if call('EXISTS', KEYS[2]) == 1 then
  local flat = call('XINFO', 'STREAM', KEYS[2])
  for i = 1, #flat, 2 do if flat[i] == 'last-generated-id' then last = flat[i + 1] end end
end
local head = call('ZRANGE', KEYS[1], 0, 0, 'WITHSCORES')
return {call('ZRANGE', KEYS[1], 0, -1), head[2] and math.max(tonumber(head[2]) - now, 0) or -1, last}

#!lua flags=allow-oom
-- A topic gets more partitions; each call is one step on one partition, and may be repeated.
-- KEYS  1 stream  2 packed  3 delayed  4 ids  5 moving     ARGV  1 how: close, fill, moved, open  2 number of partitions the topic gets
-- close: an old partition takes no more events, and its delayed ones wait in `moving`. Returns {1, its last entry}, or {0, the same} if it was opened again.
-- fill:  3 delayed or ids, 4... members and scores. Into a new partition that is not open yet; returns {1} or {0} if it is open, then nothing was written.
-- moved: 3... members of an old partition's `moving` that are in new ones now. Returns {1}, or {0} if it is open.
-- open:  3 parent ('' for an old partition)  4 fence. It takes events for the new number, and what was not moved is due here. Returns {1}, or {0} if it did already.
-- Error: GREW n (the topic is getting, or has, more than that by now). Then nothing was written.
local call, how, to = redis.call, ARGV[1], ARGV[2]
local state = call('HMGET', KEYS[2], 'of', 'to', 'last')
if tonumber(state[2] or 0) > tonumber(to) then return redis.error_reply('GREW ' .. state[2]) end
local open = state[1] == to
if how == 'close' then
  if open then return {0, state[3]} end
  if state[2] ~= to then
    local last = '0-0'
    if call('EXISTS', KEYS[1]) == 1 then
      local flat = call('XINFO', 'STREAM', KEYS[1])
      for i = 1, #flat, 2 do if flat[i] == 'last-generated-id' then last = flat[i + 1] end end
    end
    state[3] = last
    call('HSET', KEYS[2], 'of', '0', 'to', to, 'last', last)
    if call('EXISTS', KEYS[3]) == 1 then call('RENAME', KEYS[3], KEYS[5]) end
  end
  return {1, state[3]}
end
if open then return {0} end
if how == 'fill' then
  local key = ARGV[3] == 'delayed' and KEYS[3] or KEYS[4]
  for i = 4, #ARGV, 2 do call('ZADD', key, 'NX', ARGV[i + 1], ARGV[i]) end
  if key == KEYS[4] and call('EXISTS', key) == 1 then
    call('PEXPIREAT', key, math.ceil(tonumber(call('ZRANGE', key, -1, -1, 'WITHSCORES')[2])))
  end
  return {1}
elseif how == 'moved' then
  for i = 3, #ARGV do call('ZREM', KEYS[5], ARGV[i]) end
  return {1}
end
call('HSET', KEYS[2], 'of', to, 'to', to)
if ARGV[3] ~= '' then call('HSET', KEYS[2], 'parent', ARGV[3], 'fence', ARGV[4]) end
if call('EXISTS', KEYS[5]) == 1 then call('RENAME', KEYS[5], KEYS[3]) end
return {1}

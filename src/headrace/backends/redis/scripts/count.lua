#!lua flags=allow-oom
-- What everybody knows of a topic's number of partitions; each call changes one hash, and may be repeated, however late.
-- KEYS  1 hash     ARGV  1 how: more, before, done  2 topic  3 number
-- more: `headrace:topics` says this number, unless it says more. before: it is among those in `headrace:grown`. done: `headrace:growing` does not say it any more.
-- Returns what the hash says then, or nil.
local call, how, topic, number = redis.call, ARGV[1], ARGV[2], ARGV[3]
local known = call('HGET', KEYS[1], topic)
if how == 'more' then
  if tonumber(known or 0) < tonumber(number) then call('HSET', KEYS[1], topic, number) end
elseif how == 'before' then
  if not string.find(' ' .. (known or '') .. ' ', ' ' .. number .. ' ', 1, true) then
    call('HSET', KEYS[1], topic, known and known .. ' ' .. number or number)
  end
elseif known == number then
  call('HDEL', KEYS[1], topic)
end
return call('HGET', KEYS[1], topic)

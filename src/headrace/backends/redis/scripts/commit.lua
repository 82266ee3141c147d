#!lua flags=allow-oom
-- Settles deliveries of one stream. What an entry writes is written only if the entry is still pending: the first to settle it wins.
-- KEYS  1 stream they were read from (the topic's or the group's retry stream)  2 retry  3 record  4 dead  5 delayed:G
--       6... the keys that outputs (stream, delayed, ids, packed: four in a row per topic) and effects name by their place here
-- ARGV  1 group  2 consumer  3 how many entries the consumer holds (-1: unknown)  4 number without writes  5 number with writes
--       6... ids without writes, ids with writes; then per entry with writes: how many of its events were handled, how many it has (1, or
--       as many as are packed into it), number of words that follow, writes:
--         E place argc command arguments...                                  an effect on KEYS[place]
--         O place cap window-ms given-id due argc fields...                  an output to the topic whose stream is KEYS[place]
--         Z delay-ms argc fields...   B argc fields...   D argc fields...    a copy: later to the retry stream, now to it, to the dead letters
-- Returns {settled, ids that others had settled, {id, place, why, ...} of entries whose writes cannot be made: those are untouched}; the
--          place (from 0) is that of the first word of the write that cannot.
-- Error: BACKPRESSURE (an output's topic is at its cap). Then nothing was written.
local call, source, group = redis.call, KEYS[1], ARGV[1]
local held, np, nr, total = tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5]), #ARGV
local retry_source = source == KEYS[2]
local lost, refused, won, handled, extra = {}, {}, 0, 0, 0
local now
local function clock()
  if not now then
    local t = call('TIME')
    now = t[1] * 1000 + math.floor(t[2] / 1000)
  end
  return now
end

-- Checks. A script is not rolled back, so everything that can fail is looked at before the first write of an entry.
local SPECS = {                                               -- type, fewest and most arguments, in groups of, those that are integers, numbers
  SET = {'any', 1, 1, 1}, SETNX = {'any', 1, 1, 1}, DEL = {'any', 0, 0, 1}, EXPIRE = {'any', 1, 1, 1, 0}, PEXPIRE = {'any', 1, 1, 1, 0},
  APPEND = {'string', 1, 1, 1}, INCRBY = {'string', 1, 1, 1, 0}, INCRBYFLOAT = {'string', 1, 1, 1, nil, 0},
  HSET = {'hash', 2, 8000, 2}, HSETNX = {'hash', 2, 2, 1}, HDEL = {'hash', 1, 8000, 1}, HINCRBY = {'hash', 2, 2, 1, 1}, HINCRBYFLOAT = {'hash', 2, 2, 1, nil, 1},
  LPUSH = {'list', 1, 8000, 1}, RPUSH = {'list', 1, 8000, 1}, LTRIM = {'list', 2, 2, 1, 0}, LREM = {'list', 2, 2, 1, 0},
  SADD = {'set', 1, 8000, 1}, SREM = {'set', 1, 8000, 1}, ZADD = {'zset', 2, 8000, 2, nil, 0}, ZREM = {'zset', 1, 8000, 1}, ZINCRBY = {'zset', 2, 2, 1, nil, 0}}
local INTEGER = {INCRBY = true, HINCRBY = true}
local FLOAT = {INCRBYFLOAT = true, HINCRBYFLOAT = true}
local kinds, numbers = {}, {}                                  -- what the keys will be, were the writes so far made
local function kind_of(place)
  local kind = kinds[place]
  if not kind then kind = call('TYPE', KEYS[place]).ok; kinds[place] = kind end
  return kind
end
local function known_of(place)
  local known = numbers[place]
  if not known then known = {}; numbers[place] = known end
  return known
end
local function check_number(command, place, field, by)
  local known = known_of(place)
  local value = known[field or '']
  if value == nil then
    if kind_of(place) == 'none' then value = 0
    elseif field then value = call('HGET', KEYS[place], field) or 0
    else value = call('GET', KEYS[place]) or 0 end
    if type(value) == 'string' and INTEGER[command] and not string.match(value, '^%-?%d+$') then
      return KEYS[place] .. ' ' .. (field or '') .. ' is not an integer'
    end
  end
  value = tonumber(value)
  if not value then return KEYS[place] .. ' ' .. (field or '') .. ' is not a number' end
  value = value + tonumber(by)
  if INTEGER[command] and (value > 9.2e18 or value < -9.2e18) then return KEYS[place] .. ' ' .. (field or '') .. ' would overflow' end
  if value ~= value or value == math.huge or value == -math.huge then return KEYS[place] .. ' would not be a number' end
  known[field or ''] = value
end
local function check_effect(place, command, from, to)
  local spec, count = SPECS[command], to - from + 1
  if not spec then return 'command ' .. command .. ' is not one that an effect may use' end
  if count < spec[2] or count > spec[3] or count % spec[4] > 0 then return command .. ' with ' .. count .. ' arguments' end
  if spec[5] then
    for i = from + spec[5], command == 'LTRIM' and to or from + spec[5] do
      if not string.match(ARGV[i], '^%-?%d+$') or math.abs(tonumber(ARGV[i])) > 9.2e18 then return command .. ': ' .. ARGV[i] .. ' is not an integer' end
    end
  elseif spec[6] then
    for i = from + spec[6], command == 'ZADD' and to or from + spec[6], spec[4] do
      local number = string.match(ARGV[i], '^[-+%d.eE]+$') and tonumber(ARGV[i])
      if not number or math.abs(number) == math.huge then return command .. ': ' .. ARGV[i] .. ' is not a number' end
    end
  end
  local want, kind = spec[1], kind_of(place)
  if want == 'any' then
    if command == 'DEL' then kinds[place] = 'none'; numbers = {} end
    if command == 'SET' or (command == 'SETNX' and kind == 'none') then
      kinds[place] = 'string'
      known_of(place)[''] = ARGV[from]
    end
    return
  end
  if kind ~= 'none' and kind ~= want then return KEYS[place] .. ' holds a ' .. kind .. ', ' .. command .. ' needs a ' .. want end
  if INTEGER[command] or FLOAT[command] then
    local field = want == 'hash' and ARGV[from] or nil
    local why = check_number(command, place, field, ARGV[to])
    if why then return why end
  elseif command == 'HSET' then for i = from, to, 2 do known_of(place)[ARGV[i]] = ARGV[i + 1] end
  elseif command == 'HDEL' or command == 'APPEND' or command == 'HSETNX' then numbers = {} end
  kinds[place] = want
end
local room = {}
local function check_output(place, cap)
  if KEYS[place] ~= source then
    if not room[place] then
      local packed = call('HMGET', KEYS[place + 3], 'extra', 'gone')
      room[place] = tonumber(cap) - call('XLEN', KEYS[place]) - tonumber(packed[1] or 0) + tonumber(packed[2] or 0)
    end
    room[place] = room[place] - 1
    if room[place] < 0 then return 'BACKPRESSURE ' .. KEYS[place] .. ' is at its cap of ' .. cap end
  end
end
local function check(p, stop)                                   -- a reason or nil, whether it concerns the whole call, and the place of the write
  while p <= stop do
    local op = ARGV[p]
    if op == 'E' then
      local argc = tonumber(ARGV[p + 2])
      local why = check_effect(tonumber(ARGV[p + 1]), ARGV[p + 3], p + 4, p + 3 + argc)
      if why then return why, false, p end
      p = p + 4 + argc
    elseif op == 'O' then
      local why = check_output(tonumber(ARGV[p + 1]), ARGV[p + 2])
      if why then return why, true end
      p = p + 7 + tonumber(ARGV[p + 6])
    elseif op == 'Z' then p = p + 3 + tonumber(ARGV[p + 2])
    else p = p + 2 + tonumber(ARGV[p + 1]) end
  end
end

-- Writes.
local fmt = string.format
local function delay(key, due, from, to)
  local parts, copy = {}, 1
  for i = from, to do parts[#parts + 1] = #ARGV[i] .. ':' .. ARGV[i] .. ',' end
  local record = table.concat(parts)
  local member = record
  while call('ZADD', key, 'NX', fmt('%d', due), member) == 0 do  -- another copy of the same event waits already: both must
    copy = copy + 1
    member = record .. fmt('4:copy,%d:%d,', #fmt('%d', copy), copy)
  end
end
local function output(p)
  local place, window, id, due, argc = tonumber(ARGV[p + 1]), tonumber(ARGV[p + 3]), ARGV[p + 4], ARGV[p + 5], tonumber(ARGV[p + 6])
  if id ~= '' then
    local ids = KEYS[place + 2]
    call('ZREMRANGEBYSCORE', ids, '-inf', clock())
    if call('ZADD', ids, 'NX', fmt('%d', clock() + window), id) == 0 then return end
    if call('PTTL', ids) < window then call('PEXPIRE', ids, window) end
  end
  if due == '' then call('XADD', KEYS[place], '*', unpack(ARGV, p + 7, p + 6 + argc))
  elseif string.sub(due, 1, 1) == '+' then delay(KEYS[place + 1], clock() + tonumber(string.sub(due, 2)), p + 7, p + 6 + argc)
  else delay(KEYS[place + 1], tonumber(due), p + 7, p + 6 + argc) end
end
local function apply(p, stop)
  while p <= stop do
    local op = ARGV[p]
    if op == 'E' then
      local argc = tonumber(ARGV[p + 2])
      call(ARGV[p + 3], KEYS[tonumber(ARGV[p + 1])], unpack(ARGV, p + 4, p + 3 + argc))
      p = p + 4 + argc
    elseif op == 'O' then
      output(p)
      p = p + 7 + tonumber(ARGV[p + 6])
    elseif op == 'Z' then
      local argc = tonumber(ARGV[p + 2])
      delay(KEYS[5], clock() + tonumber(ARGV[p + 1]), p + 3, p + 2 + argc)
      p = p + 3 + argc
    else
      local argc = tonumber(ARGV[p + 1])
      call('XADD', op == 'B' and KEYS[2] or KEYS[4], '*', unpack(ARGV, p + 2, p + 1 + argc))
      p = p + 2 + argc
    end
  end
end

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
    kinds, numbers = {}, {}
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

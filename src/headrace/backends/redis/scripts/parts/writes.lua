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
  HSET = {'hash', 2, MOST, 2}, HSETNX = {'hash', 2, 2, 1}, HDEL = {'hash', 1, MOST, 1}, HINCRBY = {'hash', 2, 2, 1, 1}, HINCRBYFLOAT = {'hash', 2, 2, 1, nil, 1},
  LPUSH = {'list', 1, MOST, 1}, RPUSH = {'list', 1, MOST, 1}, LTRIM = {'list', 2, 2, 1, 0}, LREM = {'list', 2, 2, 1, 0},
  SADD = {'set', 1, MOST, 1}, SREM = {'set', 1, MOST, 1}, ZADD = {'zset', 2, MOST, 2, nil, 0}, ZREM = {'zset', 1, MOST, 1}, ZINCRBY = {'zset', 2, 2, 1, nil, 0}}
local EXPIRY = {EXPIRE = 9e12, PEXPIRE = 9e15}                  -- a time beyond it the server refuses
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
local function is_integer(text)                                 -- as the server reads it: no plus, no leading zeros, no minus zero
  return (text == '0' or string.match(text, '^%-?[1-9]%d*$')) and math.abs(tonumber(text)) <= 9.2e18
end
local function is_number(text)
  local number = string.match(text, '^[-+%d.eE]+$') and tonumber(text)
  return number and math.abs(number) < math.huge and (number ~= 0 or not string.match(text, '^[-+.0]*[1-9]'))  -- 1e-400 is none
end
local function check_number(command, place, field, by)
  local known = known_of(place)
  local value = known[field or '']
  if value == nil then
    if kind_of(place) == 'none' then value = 0
    elseif field then value = call('HGET', KEYS[place], field) or 0
    else value = call('GET', KEYS[place]) or 0 end
  end
  if type(value) == 'string' and not (INTEGER[command] and is_integer or is_number)(value) or INTEGER[command] and value % 1 ~= 0 then
    return KEYS[place] .. ' ' .. (field or '') .. ' is not ' .. (INTEGER[command] and 'an integer' or 'a number')
  end
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
      if not is_integer(ARGV[i]) or math.abs(tonumber(ARGV[i])) > (EXPIRY[command] or 9.2e18) then return command .. ': ' .. ARGV[i] .. ' is not an integer' end
    end
  elseif spec[6] then
    for i = from + spec[6], command == 'ZADD' and to or from + spec[6], spec[4] do
      if not is_number(ARGV[i]) then return command .. ': ' .. ARGV[i] .. ' is not a number' end
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
local function check_output(place, cap, of)
  if not room[place] then
    local packed = call('HMGET', KEYS[place + 3], 'extra', 'gone', 'of')
    if packed[3] and packed[3] ~= of then return 'GREW ' .. packed[3] end
    room[place] = KEYS[place] == source and math.huge
      or tonumber(cap) - call('XLEN', KEYS[place]) - tonumber(packed[1] or 0) + tonumber(packed[2] or 0)
  end
  room[place] = room[place] - 1
  if room[place] < 0 then return 'BACKPRESSURE ' .. KEYS[place] .. ' is at its cap of ' .. cap end
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
      if tonumber(ARGV[p + 7]) > MOST then return 'an event of ' .. ARGV[p + 7] .. ' names and values', false, p end
      local why = check_output(tonumber(ARGV[p + 1]), ARGV[p + 2], ARGV[p + 4])
      if why then return why, true end
      p = p + 8 + tonumber(ARGV[p + 7])
    elseif op == 'Z' or op == 'P' then p = p + 3 + tonumber(ARGV[p + 2])
    else p = p + 2 + tonumber(ARGV[p + 1]) end
  end
end

-- Writes.
local fmt = string.format
local function slice(fields, from, to)
  for i = from, to do fields[#fields + 1] = ARGV[i] end
  return fields
end
local function output(p)
  local place, window, id, due, argc = tonumber(ARGV[p + 1]), tonumber(ARGV[p + 3]), ARGV[p + 5], ARGV[p + 6], tonumber(ARGV[p + 7])
  if id ~= '' then
    local ids = KEYS[place + 2]
    call('ZREMRANGEBYSCORE', ids, '-inf', clock())
    if call('ZADD', ids, 'NX', fmt('%d', clock() + window), id) == 0 then return end
    if call('PTTL', ids) < window then call('PEXPIRE', ids, window) end
  end
  if due == '' then call('XADD', KEYS[place], '*', unpack(ARGV, p + 8, p + 7 + argc))  -- `check` has seen that they are not too many
  elseif string.sub(due, 1, 1) == '+' then keep(KEYS[place + 1], clock() + tonumber(string.sub(due, 2)), ARGV, p + 8, p + 7 + argc)
  else keep(KEYS[place + 1], tonumber(due), ARGV, p + 8, p + 7 + argc) end
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
      p = p + 8 + tonumber(ARGV[p + 7])
    elseif op == 'Z' then
      local argc = tonumber(ARGV[p + 2])
      keep(KEYS[5], clock() + tonumber(ARGV[p + 1]), ARGV, p + 3, p + 2 + argc)
      p = p + 3 + argc
    elseif op == 'P' then
      local argc = tonumber(ARGV[p + 2])
      append(KEYS[2], slice({'due', fmt('%d', clock() + tonumber(ARGV[p + 1]))}, p + 3, p + 2 + argc))
      p = p + 3 + argc
    else
      local argc = tonumber(ARGV[p + 1])
      append(op == 'B' and KEYS[2] or KEYS[4], slice({}, p + 2, p + 1 + argc))
      p = p + 2 + argc
    end
  end
end


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
local REMOVES = {HDEL = true, LTRIM = true, LREM = true, SREM = true, ZREM = true}  -- the last element goes with its key
local BYTES = 536870912                                         -- of a string, at most
local states = {}                                               -- what the keys will be, were the writes so far made
local topics = {}                                               -- keys that an effect may not write
for i = 1, 5 do topics[KEYS[i]] = true end
local function become(state, kind, text)                        -- nothing of it is on the server any more
  state.kind, state.blank, state.fields, state.maybe, state.bytes = kind, true, {[''] = text}, false, text and #text
end
local function state_of(key)
  local state = states[key]
  if not state then
    state = {kind = call('TYPE', key).ok, fields = {}}
    state.blank = state.kind == 'none'
    states[key] = state
  end
  return state
end
local function value_of(key, state, field)                      -- text, a number, a sum of numbers as {number}, or false
  local value = state.fields[field or '']
  if value == nil then
    value = not state.blank and (field and call('HGET', key, field) or not field and call('GET', key))
    state.fields[field or ''] = value
  end
  return value
end
local function is_integer(text)                                 -- as the server reads it: no plus, no leading zeros, no minus zero
  return (text == '0' or string.match(text, '^%-?[1-9]%d*$')) and math.abs(tonumber(text)) <= 9.2e18
end
local function is_number(text)
  local number = #text <= 300 and string.match(text, '^[-+%d.eE]+$') and tonumber(text)
  return number and math.abs(number) < math.huge and (number ~= 0 or not string.match(text, '^[-+.0]*[1-9]'))  -- 1e-400 is none
end
local function check_number(command, key, state, field, by)
  local whole, value = INTEGER[command], value_of(key, state, field) or 0
  if type(value) == 'table' then value = not whole and value[1]  -- the server adds more precisely than we can: whether the sum is whole is unknown
  elseif type(value) == 'string' then value = (whole and is_integer or is_number)(value) and tonumber(value) end
  if not value then return key .. ' ' .. (field or '') .. ' is not ' .. (whole and 'an integer' or 'a number') end
  value = value + tonumber(by)
  if whole and math.abs(value) > 9.2e18 then return key .. ' ' .. (field or '') .. ' would overflow' end
  if value ~= value or math.abs(value) == math.huge then return key .. ' would not be a number' end
  state.fields[field or ''] = whole and value or {value}
end
local function check_append(key, state, text)
  if not state.bytes then state.bytes = state.blank and 0 or call('STRLEN', key) end
  local old = state.bytes > 100 and 'long' or value_of(key, state) or ''  -- too long for a number
  if type(old) == 'number' and old % 1 == 0 and math.abs(old) < 2^53 then old = string.format('%d', old) end
  state.bytes = state.bytes + #text
  if state.bytes > BYTES then return key .. ' would be longer than 512 MiB' end
  state.fields[''] = type(old) == 'string' and #old + #text <= 100 and old .. text or 'long'
end
local function check_effect(key, command, from, to)
  local spec, count = SPECS[command], to - from + 1
  if not spec then return 'command ' .. command .. ' is not one that an effect may use' end
  if topics[key] then return key .. ' belongs to a topic, ' .. command .. ' may not write it' end
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
  local want, state = spec[1], state_of(key)
  state.touched = true
  if command == 'DEL' or EXPIRY[command] and tonumber(ARGV[from]) <= 0 then become(state, 'none')
  elseif command == 'SET' then become(state, 'string', ARGV[from])
  elseif command == 'SETNX' then
    if state.maybe then return key .. ' may be gone or not after a removal of the same event, SETNX needs to know' end
    if state.kind == 'none' then become(state, 'string', ARGV[from]) end
  end
  if want == 'any' then return end
  if state.kind ~= 'none' and state.kind ~= want then return key .. ' holds a ' .. state.kind .. ', ' .. command .. ' needs a ' .. want end
  if REMOVES[command] then
    state.maybe = state.kind ~= 'none'
    if command == 'HDEL' then for i = from, to do state.fields[ARGV[i]] = false end end
    return
  end
  state.kind, state.maybe = want, false
  if INTEGER[command] or FLOAT[command] then return check_number(command, key, state, want == 'hash' and ARGV[from], ARGV[to])
  elseif command == 'APPEND' then return check_append(key, state, ARGV[from])
  elseif command == 'HSET' then for i = from, to, 2 do state.fields[ARGV[i]] = ARGV[i + 1] end
  elseif command == 'HSETNX' and not value_of(key, state, ARGV[from]) then state.fields[ARGV[from]] = ARGV[to] end
end
local function check_key(place, want)
  local key = KEYS[place]
  local state = state_of(key)
  topics[key] = true
  if state.touched then return key .. ' belongs to a topic, an effect may not write it', false end
  if state.kind ~= 'none' and state.kind ~= want then return 'WRONGTYPE ' .. key .. ' holds a ' .. state.kind .. ', expected a ' .. want, true end
end
local PLACES = {Z = 5, P = 2, B = 2, D = 4}
local room = {}
local OUTPUT = {'stream', 'zset', 'zset', 'hash'}               -- stream, delayed, ids, packed
local function check_output(place, cap, of)
  if not room[place] then
    for i, want in ipairs(OUTPUT) do
      local why, all = check_key(place + i - 1, want)
      if why then return why, all end
    end
    local packed = call('HMGET', KEYS[place + 3], 'extra', 'gone', 'of')
    if packed[3] and packed[3] ~= of then return 'GREW ' .. packed[3], true end
    room[place] = KEYS[place] == source and math.huge
      or tonumber(cap) - call('XLEN', KEYS[place]) - tonumber(packed[1] or 0) + tonumber(packed[2] or 0)
  end
  room[place] = room[place] - 1
  if room[place] < 0 then return 'BACKPRESSURE ' .. KEYS[place] .. ' is at its cap of ' .. cap, true end
end
local function check(p, stop)                                   -- a reason or nil, whether it concerns the whole call, and the place of the write
  while p <= stop do
    local op = ARGV[p]
    if op == 'E' then
      local argc = tonumber(ARGV[p + 2])
      local why = check_effect(KEYS[tonumber(ARGV[p + 1])], ARGV[p + 3], p + 4, p + 3 + argc)
      if why then return why, false, p end
      p = p + 4 + argc
    elseif op == 'O' then
      if tonumber(ARGV[p + 7]) > MOST then return 'an event of ' .. ARGV[p + 7] .. ' names and values', false, p end
      local why, all = check_output(tonumber(ARGV[p + 1]), ARGV[p + 2], ARGV[p + 4])
      if why then return why, all, p end
      p = p + 8 + tonumber(ARGV[p + 7])
    else                                                        -- a copy
      local why, all = check_key(PLACES[op], op == 'Z' and 'zset' or 'stream')
      if why then return why, all, p end
      p = (op == 'Z' or op == 'P') and p + 3 + tonumber(ARGV[p + 2]) or p + 2 + tonumber(ARGV[p + 1])
    end
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


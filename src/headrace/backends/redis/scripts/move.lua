#!lua
-- An operator moves events: from the dead letters or the topic to the group's retry stream, or away for good.
-- KEYS  1 stream to take from  2 retry  3 record     ARGV  1 how: again (dead letters, back to the group), drop (dead letters), copy (from the topic)  2... ids
-- Returns how many events were there.
local call, how, moved = redis.call, ARGV[1], 0
local function split(id, own)
  assert(own[3] == 'events' and own[#own - 3] == 'sizes' and own[#own - 1] == 'data')
  local stem, first = string.match(own[2], '^(.*%.)(%d+)$')
  local sizes, data, at, constant = cjson.decode(own[#own - 2]), own[#own], 1, #own - 4
  local keys, key_sizes, key_at
  if own[#own - 5] == 'keys' then
    keys, key_sizes, key_at, constant = own[#own - 4], cjson.decode(own[#own - 6]), 1, constant - 4
  end
  local events = {}
  for n, size in ipairs(sizes) do
    assert(size >= 0 and size % 1 == 0)
    local fields = {'id', stem .. string.format('%d', first + n - 1)}
    for i = 7, constant do fields[i - 4] = own[i] end
    if keys then
      fields[#fields + 1] = 'key'; fields[#fields + 1] = string.sub(keys, key_at, key_at + key_sizes[n] - 1)
      key_at = key_at + key_sizes[n]
    end
    fields[#fields + 1] = 'data'; fields[#fields + 1] = string.sub(data, at, at + size - 1)
    at = at + size
    events[n] = {id .. '/' .. (n - 1), fields}
  end
  assert(at == #data + 1 and #events == tonumber(own[4]) and (not keys or (key_at == #keys + 1 and #key_sizes == #sizes)))
  return events
end
local function events_of(id, own)                               -- (id, fields) of each event of an entry: one, or those that are packed
  local packed, events = pcall(split, id, own)
  return packed and events or {{id, own}}
end
for i = 2, #ARGV do
  local id = ARGV[i]
  local entry = call('XRANGE', KEYS[1], id, id)[1]
  if entry then
    local events = events_of(id, entry[2])
    for _, event in ipairs(how == 'drop' and {} or events) do
      local a, own = {'id', event[1], 'attempt', '1', 'origin', event[1]}, event[2]
      for f = 1, #own, 2 do
        if own[f] == 'id' then a[2] = own[f + 1]
        elseif own[f] == 'origin' then a[6] = own[f + 1]
        elseif own[f] ~= 'attempt' and own[f] ~= 'reason' then a[#a + 1] = own[f]; a[#a + 1] = own[f + 1] end
      end
      call('XADD', KEYS[2], '*', unpack(a))
    end
    if how == 'copy' then call('HINCRBY', KEYS[3], 'replayed', #events) else call('XDEL', KEYS[1], id) end
    if how == 'drop' then call('HINCRBY', KEYS[3], 'dropped', 1) end
    moved = moved + (how == 'copy' and #events or 1)
  end
end
return moved

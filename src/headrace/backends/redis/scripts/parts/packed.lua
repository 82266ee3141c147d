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

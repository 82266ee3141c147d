local function read_record(record, fields)                      -- adds the fields of a delayed record: netstrings, length ':' bytes ','
  local p = 1
  while p <= #record do
    local colon = string.find(record, ':', p, true)
    local n = tonumber(string.sub(record, p, colon - 1))
    fields[#fields + 1] = string.sub(record, colon + 1, colon + n)
    p = colon + n + 2
  end
  return fields
end
local function keep_record(key, due, record)
  local member, copy = record, 1
  while call('ZADD', key, 'NX', string.format('%d', due), member) == 0 do  -- another copy of the same event waits already: both must
    copy = copy + 1
    member = record .. string.format('4:copy,%d:%d,', #string.format('%d', copy), copy)
  end
end

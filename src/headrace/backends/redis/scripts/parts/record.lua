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

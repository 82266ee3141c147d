local function keep(key, due, fields, from, to)                 -- as a delayed record, until it is due
  local parts, copy = {}, 1
  for i = from, to do parts[#parts + 1] = #fields[i] .. ':' .. fields[i] .. ',' end
  local record = table.concat(parts)
  local member = record
  while call('ZADD', key, 'NX', string.format('%d', due), member) == 0 do  -- another copy of the same event waits already: both must
    copy = copy + 1
    member = record .. string.format('4:copy,%d:%d,', #string.format('%d', copy), copy)
  end
end

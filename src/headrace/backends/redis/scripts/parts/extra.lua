local function extra_before(packed, place)                      -- events beyond one per entry before a place of the stream (an id, '(id' or '-')
  local extra, seen, count = tonumber(call('HGET', packed, 'extra') or 0), 0, 1
  while extra > 0 and seen < 100000 do
    local page = call('XRANGE', stream, place, '+', 'COUNT', count)
    if #page == 0 then break end
    for _, entry in ipairs(page) do
      if entry[2][3] == 'events' and entry[2][5] == 'before' then return tonumber(entry[2][6]) end
    end
    place = '(' .. page[#page][1]
    seen = seen + #page
    count = 100
  end
  return extra
end

local function each(key, from, visit)                           -- every entry from there on, by pages: there may be millions
  local page
  repeat
    page = call('XRANGE', key, from, '+', 'COUNT', 1000)
    for _, entry in ipairs(page) do
      visit(entry)
      from = '(' .. entry[1]
    end
  until #page == 0
end
local function count_behind(id)                                 -- entries of the stream behind an id
  local count = 0
  each(stream, '(' .. id, function() count = count + 1 end)
  return count
end

local function count_behind(id)                                 -- entries of the stream behind an id, by pages: there may be millions
  local count, from = 0, '(' .. id
  while true do
    local page = call('XRANGE', stream, from, '+', 'COUNT', 1000)
    if #page == 0 then return count end
    count, from = count + #page, '(' .. page[#page][1]
  end
end

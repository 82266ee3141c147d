local MOST = 7900                                               -- words of an entry: a call takes no more than some 8,000 values from Lua
local function append(stream, fields)                           -- what is beyond them is left out, and the field `cut` says how many fields
  local count = #fields
  if count > MOST then
    local lost = (count - MOST) / 2
    for i = MOST + 1, count, 2 do
      if fields[i] == 'cut' then lost = lost + tonumber(fields[i + 1]) - 1 end  -- of a copy that was cut before
      fields[i], fields[i + 1] = nil, nil
    end
    fields[MOST + 1] = 'cut'; fields[MOST + 2] = string.format('%d', lost)
  end
  return call('XADD', stream, '*', unpack(fields))
end

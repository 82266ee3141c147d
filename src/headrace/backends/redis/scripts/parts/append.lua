local MOST = 7900                                               -- words of an entry: a call takes no more than some 8,000 values from Lua
local function append(stream, fields)                           -- what is beyond them is left out, and the field `cut` says how many fields
  local count = #fields
  if count > MOST then
    for i = MOST + 1, count do fields[i] = nil end
    fields[MOST + 1] = 'cut'; fields[MOST + 2] = string.format('%d', (count - MOST) / 2)
  end
  return call('XADD', stream, '*', unpack(fields))
end

#!lua flags=allow-oom
-- An operator moves events: from the dead letters or the topic to the group's retry stream, or away for good.
-- KEYS  1 stream to take from  2 retry  3 record     ARGV  1 how: again (dead letters, back to the group), drop (dead letters), copy (from the topic)  2... ids
-- Returns how many events were there.
local call, how, moved = redis.call, ARGV[1], 0
local t = call('TIME')
local now = string.format('%d', t[1] * 1000 + math.floor(t[2] / 1000))
-- include append
-- include packed
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
        elseif own[f] ~= 'attempt' and own[f] ~= 'reason' and (how ~= 'copy' or own[f] ~= 'replay') then a[#a + 1] = own[f]; a[#a + 1] = own[f + 1] end
      end
      if how == 'copy' then table.insert(a, 7, 'replay'); table.insert(a, 8, now) end
      append(KEYS[2], a)
    end
    if how == 'copy' then call('HINCRBY', KEYS[3], 'replayed', #events) else call('XDEL', KEYS[1], id) end
    if how == 'drop' then call('HINCRBY', KEYS[3], 'dropped', 1) end
    moved = moved + (how == 'copy' and #events or 1)
  end
end
return moved

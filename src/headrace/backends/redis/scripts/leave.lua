#!lua flags=allow-oom
-- A worker leaves: what it holds goes to the retry stream, where any other worker takes it at once, `attempt` unchanged; its lease ends.
-- KEYS  1 stream  2 retry  3 workers  4 record     ARGV  1 group  2 worker  3 how many at most     Returns how many it still holds (0: it is gone).
local call, group, worker, room, left = redis.call, ARGV[1], ARGV[2], tonumber(ARGV[3]), 0
-- include append
-- include packed
for source = 1, 2 do
  if call('EXISTS', KEYS[source]) == 1 then
    for _, info in ipairs(call('XINFO', 'CONSUMERS', KEYS[source], group)) do
      local name, pending = info[2], info[4]
      if string.match(name, '^(.*)/[^/]*$') == worker then
        if pending > 0 and room > 0 then
          for _, row in ipairs(call('XPENDING', KEYS[source], group, '-', '+', math.min(room, pending), name)) do
            local id = row[1]
            local entry = call('XRANGE', KEYS[source], id, id)[1]
            if entry and source == 2 then append(KEYS[2], entry[2])
            elseif entry then
              local events = events_of(id, entry[2])
              for _, event in ipairs(events) do
                local a, own = {'id', event[1], 'attempt', '1', 'origin', event[1]}, event[2]
                for i = 1, #own, 2 do
                  if own[i] == 'id' then a[2] = own[i + 1] else a[#a + 1] = own[i]; a[#a + 1] = own[i + 1] end
                end
                append(KEYS[2], a)
              end
              if #events > 1 then call('HINCRBY', KEYS[4], 'extra_settled', #events - 1) end
            end
            call('XACK', KEYS[source], group, id)
            if source == 2 then call('XDEL', KEYS[2], id) end
            pending = pending - 1
            room = room - 1
          end
        end
        if pending == 0 then call('XGROUP', 'DELCONSUMER', KEYS[source], group, name) end
        left = left + pending
      end
    end
  end
end
if left == 0 then call('ZREM', KEYS[3], worker) end
return left

#!lua flags=allow-oom
-- Takes over what dead workers hold, or what is under names of our own that we do not know to hold anything: an answer was lost, or the server
-- has forgotten that it was settled. Dead is a worker whose lease has ended by the server's clock; a consumer that never had a lease is
-- dead when it has been idle for longer than one. Forgets consumers that hold nothing.
-- KEYS  1 stream  2 retry  3 workers     ARGV  1 group  2 worker  3 our consumer (worker/slot)  4 how many at most  5 lease ms
--       6 deaths from which an entry is taken alone (before, its company shrinks by 8 with each death)  7 dead or own: our own consumers but those that follow are emptied, and no death is counted  8... those that we hold something of
-- Error: NOGROUP (stream, retry stream or group were deleted).
-- Returns {entries gone from the stream while pending, {{1 stream | 2 retry, deaths, id, fields}, ...}}.
local call, group, me, room, alone, own = redis.call, ARGV[1], ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[6]), ARGV[7] == 'own'
for source = 1, 2 do
  if call('EXISTS', KEYS[source]) == 0 then return redis.error_reply('NOGROUP ' .. KEYS[source] .. ' was deleted') end
end
local t = call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local taken, gone, holds, held = {}, 0, {}, {[me] = true}
for i = 8, #ARGV do held[ARGV[i]] = true end
local company = math.huge                                     -- how many may be taken together: the one that kills must not kill many

local function empty(source, consumer, pending)
  local rows = call('XPENDING', KEYS[source], group, '-', '+', math.min(room, pending), consumer)
  local ids, deaths = {}, {}
  for _, row in ipairs(rows) do
    if not own then company = math.min(company, math.max(8 ^ (alone - row[4]), 1)) end
    if #ids + #taken >= company then
      room = 0
      break
    end
    ids[#ids + 1] = row[1]
    deaths[row[1]] = row[4]
  end
  if #ids == 0 then return pending end
  if own then                                                -- nobody died: the count stays
    local by = {}
    for _, id in ipairs(ids) do by[deaths[id]] = by[deaths[id]] or {}; table.insert(by[deaths[id]], id) end
    for n, some in pairs(by) do
      local words = {'XCLAIM', KEYS[source], group, me, 0}
      for _, id in ipairs(some) do words[#words + 1] = id end
      words[#words + 1] = 'RETRYCOUNT'; words[#words + 1] = n
      for _, entry in ipairs(call(unpack(words))) do
        if entry and entry[2] then taken[#taken + 1] = {source, n - 1, entry[1], entry[2]} else gone = gone + 1 end
      end
    end
  else
    local entries = call('XCLAIM', KEYS[source], group, me, 0, unpack(ids))
    gone = gone + #ids - #entries
    for _, entry in ipairs(entries) do
      if entry and entry[2] then taken[#taken + 1] = {source, deaths[entry[1]], entry[1], entry[2]} else gone = gone + 1 end
    end
  end
  room = room - #ids
  return pending - #ids
end

for source = 1, 2 do
  for _, info in ipairs(call('XINFO', 'CONSUMERS', KEYS[source], group)) do
    local name, pending, idle = info[2], info[4], info[6]
    local worker = string.match(name, '^(.*)/[^/]*$') or name
    local lease = tonumber(call('ZSCORE', KEYS[3], worker) or nil)
    local dead = worker ~= ARGV[2] and ((lease and lease < now) or (not lease and idle > tonumber(ARGV[5])))
    if own then dead = worker == ARGV[2] and not held[name] end
    if dead then
      if pending > 0 and room > 0 then pending = empty(source, name, pending) end
      if pending == 0 then call('XGROUP', 'DELCONSUMER', KEYS[source], group, name) end
      if lease and worker ~= ARGV[2] then holds[worker] = (holds[worker] or 0) + pending end
    end
  end
end
if not own then
  for _, worker in ipairs(call('ZRANGEBYSCORE', KEYS[3], '-inf', '(' .. string.format('%d', now))) do
    if (holds[worker] or 0) == 0 and worker ~= ARGV[2] then call('ZREM', KEYS[3], worker) end
  end
end
return {gone, taken}

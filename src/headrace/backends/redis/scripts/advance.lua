#!lua flags=allow-oom
-- Settles events of a partition in ordered mode: moves the group's cursor over the entries of the partition that are settled, and settles events
-- that were set aside. Everything is written in one moment, by the holder of the lease alone; a repeated call writes nothing again.
-- KEYS  1 stream  2 retry (events set aside)  3 record  4 dead  5 delayed:G
--       6... the keys that outputs and effects name by their place here, as in commit
-- ARGV  1 group  2 token of the lease  3 old cursor  4 new cursor (the same: no entry of the partition is settled)  5 entries between them
--       6 events of them that are handled and write nothing  7 events of them beyond one per entry  8 lease ms
--       9 events of them that write  10 events set aside that are settled  11 commits of this lease that were answered
--       12... ids of the set aside; then per event that writes, then per event set aside: 1 if it is handled, 1, number of words that follow, writes as in
--       commit, and
--         P delay-ms argc fields...                                          set aside: to the retry stream, with the time when it is due
-- Returns {1, commits of all leases} or {2, index (from 0) of an event whose writes cannot be made, place of the write, why}: then nothing was written.
-- Errors: FENCED (another worker has the lease), CURSOR (the cursor is elsewhere, the entry is not there, or the server has forgotten commits: a failover or restore), BACKPRESSURE (an output's topic is at its cap), GREW (as in commit), NOGROUP. Then
--         nothing was written.
local call, source, group = redis.call, KEYS[1], ARGV[1]
-- include append
-- include keep
-- include writes
local record = call('HMGET', KEYS[3], 'token', 'cursor', 'read', 'commits')
if record[1] ~= ARGV[2] then return redis.error_reply('FENCED ' .. (call('HGET', KEYS[3], 'owner') or 'nobody') .. ' has the lease') end
local moves = ARGV[3] ~= ARGV[4]
local done = moves and record[2] == ARGV[4]                     -- a repeated call: its answer was lost
if moves and not done and record[2] ~= ARGV[3] then return redis.error_reply('CURSOR ' .. (record[2] or 'lost')) end
if moves and not done and #call('XRANGE', source, ARGV[4], ARGV[4]) == 0 then  -- read from a server that failed over before it had copied it
  return redis.error_reply('CURSOR there is no entry ' .. ARGV[4])
end
local commits = tonumber(record[4] or 0)
if commits < tonumber(ARGV[11]) then return redis.error_reply('CURSOR only ' .. commits .. ' commits are known here, of ' .. ARGV[11]) end
local nm, nk = tonumber(ARGV[9]), tonumber(ARGV[10])
local first = 12 + nk
local aside = {}                                               -- of each event set aside: is it still there
for i = 1, nk do aside[i] = #call('XRANGE', KEYS[2], ARGV[11 + i], ARGV[11 + i]) == 1 end
local function applies(i)                                      -- i from 1
  if i <= nm then return not done end
  return aside[i - nm]
end
local q = first
for i = 1, nm + nk do
  local stop = q + 2 + tonumber(ARGV[q + 2])
  if applies(i) then
    local why, all, place = check(q + 3, stop)
    if why and all then return redis.error_reply(why) end
    if why then return {2, i - 1, place - q - 3, why} end
  end
  q = stop + 1
end
commits = fmt('%d', commits + 1)
local t_end = fmt('%d', clock() + tonumber(ARGV[8]))
local handled = 0
if moves and not done then
  local read = fmt('%d', tonumber(record[3] or 0) + tonumber(ARGV[5]))
  call('XGROUP', 'SETID', source, group, ARGV[4], 'ENTRIESREAD', read)  -- first: it fails if the group is gone
  call('HSET', KEYS[3], 'cursor', ARGV[4], 'read', read, 'until', t_end, 'commits', commits)
  if tonumber(ARGV[7]) > 0 then call('HINCRBY', KEYS[3], 'extra_settled', ARGV[7]) end
  handled = tonumber(ARGV[6])
else
  call('HSET', KEYS[3], 'until', t_end, 'commits', commits)
end
q, room = first, {}
for i = 1, nm + nk do
  local stop = q + 2 + tonumber(ARGV[q + 2])
  if applies(i) then
    if i > nm then call('XDEL', KEYS[2], ARGV[11 + i - nm]) end
    handled = handled + tonumber(ARGV[q])
    apply(q + 3, stop)
  end
  q = stop + 1
end
if handled > 0 then call('HINCRBY', KEYS[3], 'handled', handled) end
return {1, tonumber(commits)}

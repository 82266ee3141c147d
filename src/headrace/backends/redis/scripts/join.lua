#!lua
-- A worker joins a group: creates stream, group, retry stream and record if they are absent; in shared mode it takes a lease.
-- KEYS  1 stream  2 retry  3 record  4 workers  5 dead  6 delayed:G  7 packed     ARGV  1 group  2 worker ('': nobody)  3 lease ms  4 start: 0 (earliest) or $ (latest)
--       5 mode: shared (also if absent), ordered, or '': the first worker to join decides
-- Returns 'joined', 'created', 'adopted' (made by another tool), or 'renewed' (the stream had been deleted; what was in it is lost).
-- Errors: DESTROYED (the group is gone but its stream is not: where it stood is lost, an operator must say where to begin), MODE (the group is
--         used in the other mode). Then nothing was written.
local call, stream, group = redis.call, KEYS[1], ARGV[1]
local t = call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local function pairs_of(flat)
  local map = {}
  for i = 1, #flat, 2 do map[flat[i]] = flat[i + 1] end
  return map
end
local function find(key)
  if call('EXISTS', key) == 0 then return nil end
  for _, flat in ipairs(call('XINFO', 'GROUPS', key)) do
    local info = pairs_of(flat)
    if info.name == group then return info end
  end
end
-- include append
-- include record
-- include keep
-- include extra
-- include pages
local exists = call('EXISTS', stream) == 1
local info, added, length = find(stream), 0, 0
if exists then
  added = pairs_of(call('XINFO', 'STREAM', stream))['entries-added']
  length = call('XLEN', stream)
end
local record = call('HMGET', KEYS[3], 'origin', 'added', 'handled', 'mode')
local mode = ARGV[5] or 'shared'
local ordered = mode == 'ordered'
if record[4] and mode ~= '' and record[4] ~= mode then return redis.error_reply('MODE ' .. record[4]) end
if ordered and info and info.pending > 0 then return redis.error_reply('MODE shared, ' .. info.pending .. ' entries are in the hands of workers') end
local answer = 'joined'
-- What waits for its time does so in `delayed:G` in shared mode, and with the field `due` in the retry stream in ordered mode: it goes with the mode.
local function delayed_aside()
  while true do
    local page = call('ZRANGE', KEYS[6], 0, 499, 'WITHSCORES')
    for i = 1, #page, 2 do
      append(KEYS[2], read_record(page[i], {'due', string.format('%d', page[i + 1])}))
      call('ZREM', KEYS[6], page[i])
    end
    if #page == 0 then return end
  end
end
local function aside_delayed()
  each(KEYS[2], '-', function(aside)
    local own = aside[2]
    if own[1] == 'due' then
      keep(KEYS[6], tonumber(own[2]), own, 3, #own)
      call('XDEL', KEYS[2], aside[1])
    end
  end)
end
local function begin(origin, place)                                   -- what an earlier life of the group left behind is carried over
  local carried = 0
  if call('EXISTS', KEYS[2]) == 1 then carried = carried + call('XLEN', KEYS[2]) end
  if call('EXISTS', KEYS[5]) == 1 then carried = carried + call('XLEN', KEYS[5]) end
  if call('EXISTS', KEYS[6]) == 1 then carried = carried + call('ZCARD', KEYS[6]) end
  call('HSET', KEYS[3], 'origin', origin, 'replayed', carried, 'added', added, 'created', string.format('%d', now),
    'extra_origin', place == '$' and (call('HGET', KEYS[7], 'extra') or 0) or extra_before(KEYS[7], place), 'extra_settled', 0)
end
local function create(start)
  local origin = start == '0' and added - length or added
  call('XGROUP', 'CREATE', stream, group, start, 'MKSTREAM', 'ENTRIESREAD', origin)
  begin(origin, start == '0' and '-' or '$')
end
if info and not record[1] then
  answer = 'adopted'
  local read = info['entries-read']
  if type(read) ~= 'number' then                             -- a position set by hand: count what lies behind it, once
    read = added - count_behind(info['last-delivered-id'])
    call('XGROUP', 'SETID', stream, group, info['last-delivered-id'], 'ENTRIESREAD', read)
  end
  begin(read - info.pending, info.pending > 0 and call('XPENDING', stream, group)[2] or '(' .. info['last-delivered-id'])
elseif not info and not record[1] then
  answer = 'created'
  create(ARGV[4])
elseif not info then
  local known = tonumber(record[2] or 0)                        -- written now and then: 0 may be older than what was handled since
  if exists and added >= known and (known > 0 or tonumber(record[3] or 0) > 0) then
    return redis.error_reply('DESTROYED group ' .. group .. ' of ' .. stream)
  end
  answer = 'renewed'
  call('DEL', KEYS[3])
  create('0')
end
if mode ~= '' and (not record[4] or answer == 'renewed') then
  call('HSET', KEYS[3], 'mode', mode)
  if ordered then
    info = find(stream)
    call('HSET', KEYS[3], 'cursor', info['last-delivered-id'], 'read', info['entries-read'])
    delayed_aside()
  else
    aside_delayed()
  end
end
if ordered then return answer end
if not find(KEYS[2]) then call('XGROUP', 'CREATE', KEYS[2], group, '0', 'MKSTREAM') end
if ARGV[2] ~= '' then call('ZADD', KEYS[4], string.format('%d', now + ARGV[3]), ARGV[2]) end
return answer

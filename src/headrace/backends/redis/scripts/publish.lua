#!lua
-- Appends a batch exactly once: what a producer has already appended is dropped by its high-water mark.
-- KEYS  1 stream  2 mark of the producer ("epoch seq")  3 delayed (zset)  4 ids (zset)  5 packed (hash)
-- ARGV  1 producer  2 epoch  3 seq of the first record  4 number of records  5 cap of the stream  6 mark's time to live, s  7 window of given ids, ms
--       8 number of partitions by which the records were given to this one
--       then runs of records that share a shape: number of records, kind (0 plain, 1 general, 2 packed), number of constant fields, number of
--       varying fields, constant names and values, varying names, then per record: if general: id or '', due ('' at once, '+ms' from now,
--       'ms' Unix time); the varying values. A packed run is one entry: its values follow once.
-- Returns {appended or delayed, repeats of the producer, repeats of given ids}.
-- Errors: FENCED (a newer epoch exists), GREW n (the topic has n partitions now; 0: it is getting more right now), GAP (records before these are missing), BACKPRESSURE (the stream is at its cap), INVALID (a packed
--         run of which a part is there). Then nothing was written.
local call, stream, fmt = redis.call, KEYS[1], string.format
local producer, epoch, first, count = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local last = 0
local mark = call('GET', KEYS[2])
if mark then
  local e, s = string.match(mark, '^(%d+) (%d+)$')
  if epoch < tonumber(e) then return redis.error_reply('FENCED epoch is ' .. e) end
  if epoch == tonumber(e) then last = tonumber(s) end
end
if first > last + 1 then return redis.error_reply(fmt('GAP last is %d', last)) end
local skip = last - first + 1
if skip >= count then                                          -- nothing to append; a write all the same, for WAIT has to have one to wait for
  call('EXPIRE', KEYS[2], ARGV[6])
  return {0, count, 0}
end
local packed = call('HMGET', KEYS[5], 'extra', 'gone', 'of')  -- events beyond one per entry: ever appended, and trimmed with their entries
if packed[3] and packed[3] ~= ARGV[8] then return redis.error_reply('GREW ' .. packed[3]) end
local extra = tonumber(packed[1] or 0)
local before, packed_id = extra, nil
if call('XLEN', stream) + extra - tonumber(packed[2] or 0) + count > tonumber(ARGV[5]) then return redis.error_reply('BACKPRESSURE ' .. stream .. ' is at its cap of ' .. ARGV[5]) end

local now, window = nil, tonumber(ARGV[7])
local function prepare()                                    -- only for records with a given id or a due time
  local t = call('TIME')
  now = t[1] * 1000 + math.floor(t[2] / 1000)
  call('ZCARD', KEYS[3])                                     -- a wrong type fails here, before the first write
  call('ZREMRANGEBYSCORE', KEYS[4], '-inf', now)
end
-- include keep

local idpat = producer .. '.' .. ARGV[2] .. '.%d'
local p, seq, total, repeats, ids = 9, first, #ARGV, 0, 0
while p <= total do
  local n, kind, nc, nv = tonumber(ARGV[p]), ARGV[p + 1], tonumber(ARGV[p + 2]), tonumber(ARGV[p + 3])
  local general = kind == '1'
  local a = {'XADD', stream, '*', 'id', ''}
  if kind == '2' then a[6] = 'events'; a[7] = n; a[8] = 'before'; a[9] = '' end
  local base = #a
  p = p + 4
  for i = 1, 2 * nc do a[base + i] = ARGV[p]; p = p + 1 end
  base = base + 2 * nc
  for i = 1, nv do a[base + 2 * i - 1] = ARGV[p]; a[base + 2 * i] = ''; p = p + 1 end
  local width = base + 2 * nv
  if kind == '2' then
    if seq + n - 1 > last then
      if seq <= last then return redis.error_reply(fmt('INVALID a part of these %d packed events is there already', n)) end
      a[5] = fmt(idpat, seq); a[9] = fmt('%d', extra)
      for i = 1, nv do a[base + 2 * i] = ARGV[p + i - 1] end
      packed_id = call(unpack(a, 1, width))
      extra = extra + n - 1
    end
    p = p + nv; seq = seq + n
  elseif nv == 1 and not general and skip <= 0 then             -- the common case: one varying field, nothing to drop
    for i = p, p + n - 1 do
      a[5] = fmt(idpat, seq); a[width] = ARGV[i]; seq = seq + 1
      call(unpack(a, 1, width))
    end
    p = p + n
  else
    if general and not now then prepare() end
    for _ = 1, n do
      local id, due = '', ''
      if general then id = ARGV[p]; due = ARGV[p + 1]; p = p + 2 end
      if seq > last then
        local fresh = true
        if id == '' then a[5] = fmt(idpat, seq)
        else
          a[5] = id
          fresh = call('ZADD', KEYS[4], 'NX', fmt('%d', now + window), id) == 1
          ids = ids + 1
        end
        for i = 1, nv do a[base + 2 * i] = ARGV[p + i - 1] end
        if not fresh then repeats = repeats + 1
        elseif due == '' then call(unpack(a, 1, width))
        elseif string.sub(due, 1, 1) == '+' then keep(KEYS[3], now + tonumber(string.sub(due, 2)), a, 4, width)
        else keep(KEYS[3], tonumber(due), a, 4, width) end
      end
      p = p + nv; seq = seq + 1
    end
  end
end
if extra > before then call('HSET', KEYS[5], 'extra', fmt('%d', extra), 'newest', packed_id) end
if ids > 0 and call('PTTL', KEYS[4]) < window then call('PEXPIRE', KEYS[4], window) end
call('SET', KEYS[2], fmt('%d %d', epoch, first + count - 1), 'EX', ARGV[6])
local dropped = skip > 0 and skip or 0
return {count - dropped - repeats, dropped, repeats}

#!lua flags=allow-oom
-- A worker's heartbeat: renews its lease and appends what is due.
-- KEYS  1 stream  2 delayed; for a worker also  3 retry  4 delayed:G  5 workers     ARGV  1 worker ('' for a publisher, which has no lease)  2 lease ms  3 how many due records at most; after 4 MiB, too, the rest is left
-- Returns {ms until the next record is due or -1, 1 if the lease had been given up by others, ms until the first lease of any worker ends (negative: it has ended)}.
local call = redis.call
local t = call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local next_ms = -1
-- include append
-- include record
local PAGE, BYTES = 16, 4194304                                 -- records at once, and after so many bytes the rest is left to the next call
local function promote(delayed, stream)
  local head = call('ZRANGE', delayed, 0, 0, 'WITHSCORES')
  if not head[2] then return end
  if tonumber(head[2]) <= now then
    local records, bytes = tonumber(ARGV[3]), BYTES
    repeat
      local due = call('ZRANGEBYSCORE', delayed, '-inf', now, 'LIMIT', 0, math.min(records, PAGE))
      for _, record in ipairs(due) do
        append(stream, read_record(record, {}))
        call('ZREM', delayed, record)
        records, bytes = records - 1, bytes - #record
      end
    until #due == 0 or records == 0 or bytes <= 0
    head = call('ZRANGE', delayed, 0, 0, 'WITHSCORES')
    if not head[2] then return end
  end
  local wait = math.max(tonumber(head[2]) - now, 0)
  if next_ms < 0 or wait < next_ms then next_ms = wait end
end
promote(KEYS[2], KEYS[1])
if ARGV[1] == '' then return {next_ms, 0, 0} end
promote(KEYS[4], KEYS[3])
local lost = call('ZADD', KEYS[5], string.format('%d', now + ARGV[2]), ARGV[1])
return {next_ms, lost, tonumber(call('ZRANGE', KEYS[5], 0, 0, 'WITHSCORES')[2]) - now}

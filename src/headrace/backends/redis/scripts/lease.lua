#!lua flags=allow-oom
-- The lease of a partition in ordered mode: who may settle its events for a group. Its token, `number:worker`, grows with each taking.
-- KEYS  1 record     ARGV  1 how: take, renew, give  2 worker  3 lease ms  4 token (renew, give)
--       5 the event that is tried alone now, or '' (renew)
-- take:  {1, token, cursor, now ms, workers that died at this cursor, the event that was tried alone when the last of them died or '', how many died of it};
--        {0, ms until the lease of its holder ends, holder}
-- renew: {1, now ms, commits that are known here: fewer than were answered if the server has forgotten some}
-- give:  {1}
-- Errors: FENCED (another worker has it), NOGROUP (there is no record in ordered mode).
local call = redis.call
local record = call('HMGET', KEYS[1], 'mode', 'owner', 'token', 'until', 'cursor', 'trying', 'suspect', 'deaths', 'crashed', 'crashes', 'commits')
if record[1] ~= 'ordered' then return redis.error_reply('NOGROUP the group is not there in ordered mode') end
local t = call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local owner, till = record[2] or '', tonumber(record[4] or 0)
local fmt = string.format
if ARGV[1] == 'take' then
  if till > now + 2 * ARGV[3] and till > now + 7200000 then till = 0 end  -- the clock was set back: no lease is that long
  if owner ~= '' and owner ~= ARGV[2] and till > now then return {0, till - now, owner} end
  local token = fmt('%d:', tonumber(string.match(record[3] or '0', '^%d+')) + 1) .. ARGV[2]
  local crashes, suspect, deaths = 0, '', 0
  if owner ~= '' and owner ~= ARGV[2] then                      -- its holder died, or was silent for too long
    crashes = record[9] == record[5] and tonumber(record[10] or 0) + 1 or 1
    suspect = record[6] or ''
    if suspect ~= '' then deaths = record[7] == suspect and tonumber(record[8] or 0) + 1 or 1 end
    call('HSET', KEYS[1], 'crashed', record[5], 'crashes', crashes, 'suspect', suspect, 'deaths', deaths)
  end
  call('HSET', KEYS[1], 'owner', ARGV[2], 'token', token, 'until', fmt('%d', now + ARGV[3]), 'trying', '')
  return {1, token, record[5], now, crashes, suspect, deaths}
end
if record[3] ~= ARGV[4] then return redis.error_reply('FENCED ' .. owner .. ' has the lease') end
if ARGV[1] == 'give' then
  call('HSET', KEYS[1], 'owner', '', 'until', 0, 'trying', '')
  return {1}
end
call('HSET', KEYS[1], 'until', fmt('%d', now + ARGV[3]), 'trying', ARGV[5])
return {1, now, tonumber(record[11] or 0)}

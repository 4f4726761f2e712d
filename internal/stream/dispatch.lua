#!lua flags=allow-oom
-- Puts new entries on the queues of their shards. All of it happens, or nothing.
--
-- KEYS[1] stream   KEYS[2] dispatch lease   KEYS[3] losses   KEYS[4] last ID dispatched
-- KEYS[5] hash of the lengths of queues
-- ARGV[1] group    ARGV[2] token   ARGV[3] lease in milliseconds
-- ARGV[4] last-delivered ID the read started after
-- ARGV[5] last-delivered ID from now on   ARGV[6] entries read
-- ARGV[7] '1' if the read was not cut short: it may have reached the stream's end
-- ARGV[8] notification channel, or ''   ARGV[9] notification payload
-- then for each shard, once or more: the number of arguments that follow, and these,
-- which are those of XCLAIM: consumer, 0, IDs, RETRYCOUNT 0 FORCE JUSTID
--
-- Reply: {'lease'}       the dispatch lease has another token; nothing was done
--     or {'group'}      the group is missing; nothing was done
--     or {'moved', id}  the last-delivered ID is not where the read started; nothing was done
--     or {'dispatched', pending in the group, IDs that were trimmed since the read …}
if redis.call('get', KEYS[2]) ~= ARGV[2] then return {'lease'} end

local g = find_group(KEYS[1], ARGV[1])
if not g or g.err then return {'group'} end
if g['last-delivered-id'] ~= ARGV[4] then return {'moved', g['last-delivered-id']} end

local answer = {'dispatched', 0}
local pending, added = g['pending'], {}
local i = 10
while i <= #ARGV do
  local n = tonumber(ARGV[i])
  local claimed = redis.call('xclaim', KEYS[1], ARGV[1], unpack(ARGV, i + 1, i + n))
  pending = pending + #claimed
  added[ARGV[i + 1]] = (added[ARGV[i + 1]] or 0) + #claimed
  if #claimed < n - 6 then
    local there = {}
    for _, id in ipairs(claimed) do there[id] = true end
    for j = i + 3, i + n - 4 do
      if not there[ARGV[j]] then
        answer[#answer + 1] = ARGV[j]
        redis.call('rpush', KEYS[3], cjson.encode({
          cause = 'trimmed_unread', consumer = ARGV[i + 1], first = ARGV[j], last = ARGV[j], entries = 1}))
      end
    end
  end
  i = i + n + 1
end
answer[2] = pending

-- entries-read is what lag is computed from. It moves by what was read.
local read = g['entries-read'] or read_until(KEYS[5], ARGV[4])
if not read then
  read = note_unread(pairs_of(redis.call('xinfo', 'stream', KEYS[1])), KEYS[3], ARGV[4])
  if read then read = read - (#answer - 2) end -- those trimmed since the read are among the removed
end
if read then read = read + ARGV[6] end
move_to(KEYS[1], ARGV[1], KEYS[5], ARGV[5], read)

-- Entries that were pending already, as after the last-delivered ID was set
-- back, add nothing to a queue; which they were is not known here.
g = find_group(KEYS[1], ARGV[1])
if g['pending'] == pending then
  adjust_pending(KEYS[5], added)
else
  for consumer in pairs(added) do redis.call('hdel', KEYS[5], consumer) end
end

-- It is set right, the gap noted as lost, whenever the end of the stream is reached. To ask
-- for the number of entries added costs the bodies of both ends, of up to many megabytes:
-- where there is no gap the group's lag tells, and where something follows it is not the end.
if ARGV[7] == '1' and (not read or g['lag'] ~= 0)
    and #redis.call('xrange', KEYS[1], '(' .. ARGV[5], '+', 'COUNT', 1) == 0 then
  local s = pairs_of(redis.call('xinfo', 'stream', KEYS[1]))
  if s['last-generated-id'] == ARGV[5] then
    if read and s['entries-added'] > read then
      redis.call('rpush', KEYS[3], cjson.encode({
        cause = 'trimmed_unread', first = ARGV[4], last = ARGV[5], entries = s['entries-added'] - read}))
    end
    move_to(KEYS[1], ARGV[1], KEYS[5], ARGV[5], s['entries-added'])
  end
end

redis.call('set', KEYS[4], ARGV[5])
redis.call('pexpire', KEYS[2], ARGV[3])
if ARGV[8] ~= '' then redis.call('publish', ARGV[8], ARGV[9]) end
return answer

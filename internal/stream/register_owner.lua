#!lua flags=allow-oom
-- Registers the owner token of acquired shards, and reads what was acknowledged
-- for them, in one step: from now on no acknowledgement under an earlier token
-- succeeds, so the marks read here are final. What is missing from their queues
-- is noted as lost before anything is put on them again.
--
-- KEYS[1] stream   KEYS[2] hash of acked IDs   KEYS[3] hash of tokens
-- KEYS[4] hash of the lengths of queues   KEYS[5] hash of applied IDs   KEYS[6] losses
-- KEYS[7] the fleet's database   KEYS[8] last ID dispatched
-- ARGV[1] group   ARGV[2] token   ARGV[3] our database, '' for any
-- then the shards, each with its consumer
-- Reply: {the group's last-delivered ID or '', or the highest ID pending or read by the
-- dispatcher if that lies beyond it, up to where entries may have been
-- removed or '' for nowhere, then each shard's acked mark or '' and applied ID or ''}
if ARGV[3] ~= '' then
  local fleet = redis.call('get', KEYS[7]) or 'unknown'
  if string.match(fleet, '^%S+') ~= ARGV[3] then
    return redis.error_reply('DATABASE the fleet works with another database: ' .. fleet)
  end
end
local answer = {'', ''}
local g = find_group(KEYS[1], ARGV[1])
if g and g.err then return g end
local counts, dispatched
if g then
  answer[1] = g['last-delivered-id']
  if not made_again(KEYS[8], answer[1]) then counts = count_pending(KEYS[1], ARGV[1]) end
  dispatched = read_ahead(KEYS[4], answer[1]) or answer[1]
  local highest = redis.call('xpending', KEYS[1], ARGV[1])[3]
  if highest and after(highest, answer[1]) then answer[1] = highest end
  if after(dispatched, answer[1]) then answer[1] = dispatched end
  local s = pairs_of(redis.call('xinfo', 'stream', KEYS[1]))
  if s['entries-added'] > s['length'] then
    answer[2] = s['first-entry'] and s['first-entry'][1] or s['last-generated-id']
  end
end
for i = 4, #ARGV, 2 do
  local shard, applied = ARGV[i], redis.call('hget', KEYS[5], ARGV[i])
  redis.call('hset', KEYS[3], shard, ARGV[2])
  if counts then check_pending(KEYS[4], KEYS[6], counts, ARGV[i + 1], tonumber(shard), applied, dispatched) end
  answer[#answer + 1] = redis.call('hget', KEYS[2], shard) or ''
  answer[#answer + 1] = applied or ''
end
return answer

#!lua flags=allow-oom
-- Registers the owner token of acquired shards, and reads what was
-- acknowledged for them, in one step: from now on no acknowledgement under an
-- earlier token succeeds, so the marks read here are final.
--
-- KEYS[1] stream   KEYS[2] hash of acked IDs   KEYS[3] hash of tokens
-- KEYS[4] the fleet's database
-- ARGV[1] group   ARGV[2] token   ARGV[3] our database, '' for any   then the shards
-- Reply: {the group's last-delivered ID or '', each shard's mark or ''}
if ARGV[3] ~= '' then
  local fleet = redis.call('get', KEYS[4]) or 'unknown'
  if string.match(fleet, '^%S+') ~= ARGV[3] then
    return redis.error_reply('DATABASE the fleet works with another database: ' .. fleet)
  end
end
local answer = {''}
local rows = redis.pcall('xinfo', 'groups', KEYS[1])
if not rows.err then
  for _, row in ipairs(rows) do
    local g = {}
    for i = 1, #row, 2 do g[row[i]] = row[i + 1] end
    if g['name'] == ARGV[1] then answer[1] = g['last-delivered-id'] end
  end
end
for i = 4, #ARGV do
  redis.call('hset', KEYS[3], ARGV[i], ARGV[2])
  answer[#answer + 1] = redis.call('hget', KEYS[2], ARGV[i]) or ''
end
return answer

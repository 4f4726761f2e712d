#!lua flags=no-writes
-- Reads the heartbeats of all members.
--
-- KEYS[1] set of identities
-- Reply: the server's run_id, '' where it does not tell, then for each identity, ascending: it, its heartbeat or
--     nil, milliseconds until that expires; for a key of another type the server's error is the heartbeat
local info = redis.pcall('info', 'server')
local list = {type(info) == 'string' and string.match(info, 'run_id:(%w+)') or ''}
local identities = redis.call('smembers', KEYS[1])
table.sort(identities)
for _, identity in ipairs(identities) do
  local key = KEYS[1] .. ':' .. identity
  list[#list + 1] = identity
  local beat = redis.pcall('get', key)
  list[#list + 1] = type(beat) == 'table' and beat.err or beat
  list[#list + 1] = redis.call('pttl', key)
end
return list

#!lua flags=allow-oom
-- Removes a member, if the identity still belongs to this incarnation.
--
-- KEYS[1] the identity's heartbeat   KEYS[2] set of identities
-- ARGV[1] incarnation   ARGV[2] identity
-- Reply: 1 if it was removed
local current = redis.call('get', KEYS[1])
if current and cjson.decode(current)['incarnation'] ~= ARGV[1] then return 0 end
redis.call('del', KEYS[1])
redis.call('srem', KEYS[2], ARGV[2])
return 1

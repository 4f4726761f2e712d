#!lua flags=allow-oom
-- Takes a member off the roster, if the identity is still this incarnation's.
--
-- KEYS[1] the identity's heartbeat   KEYS[2] set of identities
-- ARGV[1] incarnation   ARGV[2] identity
-- Reply: 1 if it was taken off
local present = redis.call('get', KEYS[1])
if present and cjson.decode(present)['incarnation'] ~= ARGV[1] then return 0 end
redis.call('del', KEYS[1])
redis.call('srem', KEYS[2], ARGV[2])
return 1

#!lua flags=allow-oom
-- Leaves the last heartbeat of a member, if the identity still belongs to this incarnation.
--
-- KEYS[1] the identity's heartbeat
-- ARGV[1] incarnation   ARGV[2] heartbeat, which says that it left   ARGV[3] time to live in milliseconds
-- Reply: 1 if it was left
local ok, current = pcall(cjson.decode, redis.pcall('get', KEYS[1]))
if not ok or type(current) ~= 'table' or current['incarnation'] ~= ARGV[1] then return 0 end
redis.call('set', KEYS[1], ARGV[2], 'px', ARGV[3])
return 1

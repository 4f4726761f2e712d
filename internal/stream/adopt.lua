#!lua flags=allow-oom
-- Replaces the record of the fleet's database, which an operator has compared.
--
-- KEYS[1] the fleet's database   KEYS[2] hash of tokens
-- ARGV[1] the record as it was, '' for none   ARGV[2] as it shall be
-- Reply: 1 if it was replaced, 0 if it was another meanwhile
if (redis.call('get', KEYS[1]) or '') ~= ARGV[1] then return 0 end
redis.call('set', KEYS[1], ARGV[2])
redis.call('del', KEYS[2])
return 1

#!lua flags=allow-oom
-- Sets the applied ID of a shard: one that is acquired is granted in a full server, too.
--
-- KEYS[1] hash of applied IDs   ARGV[1] shard   ARGV[2] applied ID
return redis.call('hset', KEYS[1], ARGV[1], ARGV[2])

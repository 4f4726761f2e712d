#!lua flags=allow-oom
-- Gives a lease back, only to whom it belongs, and tells those who wait for it.
--
-- KEYS[1] lease   ARGV[1] token   ARGV[2] channel to ring
-- Reply: 1 if it was released, 0 if it is no longer held under this token
if redis.call('get', KEYS[1]) ~= ARGV[1] then return 0 end
redis.call('del', KEYS[1])
redis.call('publish', ARGV[2], 'turn')
return 1

#!lua flags=allow-oom
-- Releases a lease that is held under a token, and notifies those who wait for it.
--
-- KEYS[1] lease   ARGV[1] token   ARGV[2] notification channel
-- Reply: 1 if it was released, 0 if it is no longer held under this token
if redis.call('get', KEYS[1]) ~= ARGV[1] then return 0 end
redis.call('del', KEYS[1])
redis.call('publish', ARGV[2], 'lease')
return 1

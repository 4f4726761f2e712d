#!lua flags=allow-oom
-- Stops the dispatcher of the fleet, in a Redis that is full, too.
--
-- KEYS[1] there while dispatching is paused
-- Reply: 1
if redis.call('exists', KEYS[1]) == 0 then redis.call('set', KEYS[1], '1') end
return 1

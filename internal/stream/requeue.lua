#!lua flags=allow-oom
-- Puts entries on the queues of shards at work again, whether they are acknowledged or not.
--
-- KEYS[1] stream   KEYS[2] number of shards of the fleet   KEYS[3] hash of the lengths of queues
-- ARGV[1] group    ARGV[2] number of shards that the queues are of
-- then for each queue, once or more, the number of arguments that follow, and these, which are
-- those of XCLAIM: consumer, 0, IDs, RETRYCOUNT 0 FORCE JUSTID
--
-- Reply: the fleet's number of shards, if it is not that of the queues; nothing was done
--     or false
local shards = redis.call('get', KEYS[2])
if shards and shards ~= ARGV[2] then return shards end
local i = 3
while i <= #ARGV do
  local n, consumer = ARGV[i], ARGV[i + 1]
  redis.call('xclaim', KEYS[1], ARGV[1], unpack(ARGV, i + 1, i + n))
  redis.call('hdel', KEYS[3], consumer) -- some may have been pending
  i = i + 1 + n
end
return false

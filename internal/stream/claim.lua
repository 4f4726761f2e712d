#!lua flags=allow-oom
-- Puts entries that are pending for a foreign consumer on the queue of a shard, if
-- they are still pending there and have been for long enough. Those beyond the last ID
-- dispatched are left to the dispatcher, which comes to them again: ahead of what lies
-- before them they would move the cursor of their shard's owner past it.
--
-- KEYS[1] stream   KEYS[2] losses   KEYS[3] hash of the lengths of queues
-- KEYS[4] last ID dispatched
-- ARGV[1] group   ARGV[2] foreign consumer   ARGV[3] minimum idle time in milliseconds
-- ARGV[4] shard   ARGV[5] consumer that is the shard's queue   then the IDs
-- Reply: {entries claimed, entries that were trimmed or deleted and are noted as lost}
local claimed, gone = 0, 0
local dispatched = redis.call('get', KEYS[4])
for i = 6, #ARGV do
  local pending = redis.call('xpending', KEYS[1], ARGV[1], 'idle', ARGV[3], ARGV[i], ARGV[i], 1, ARGV[2])
  if #pending > 0 and not (dispatched and after(ARGV[i], dispatched)) then
    local got = redis.call('xclaim', KEYS[1], ARGV[1], ARGV[5], ARGV[3], ARGV[i], 'retrycount', '0', 'justid')
    if #got > 0 then
      claimed = claimed + 1
    elseif #redis.call('xrange', KEYS[1], ARGV[i], ARGV[i]) == 0 then
      redis.call('xack', KEYS[1], ARGV[1], ARGV[i])
      gone = gone + 1
      redis.call('rpush', KEYS[2], cjson.encode({
        cause = 'trimmed_pending', first = ARGV[i], last = ARGV[i], entries = 1}))
    end
  end
end
if claimed > 0 then adjust_pending(KEYS[3], {[ARGV[5]] = claimed}) end
return {claimed, gone}

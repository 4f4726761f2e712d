#!lua
-- Moves one entry to the dead letters: adds it there, remembers that it is
-- there, and acknowledges it. In this order, so that a step that fails leaves
-- the entry pending; and not with allow-oom, so that a full server refuses the
-- whole of it before anything is done.
--
-- KEYS[1] stream   KEYS[2] stream of dead letters   KEYS[3] hash of dead-lettered entries
-- KEYS[4] hash of tokens under which shards were acquired
-- KEYS[5] hash of the lengths of queues
-- ARGV[1] group
-- ARGV[2] consumer that is the shard's queue, or '' for an entry that was
--         acknowledged when it was deferred: nothing is pending then
-- ARGV[3] source ID   ARGV[4] digest of the entry's content
-- ARGV[5] shard   ARGV[6] token under which it is owned
-- ARGV[7] '1' if the dispatcher unqueued the entry: it is on no queue as long as it lies beyond the
--         last-delivered ID. There the next dispatcher would find it, and its owner might
--         store what is a dead letter: it must be queued first, unless it was trimmed
-- then the names and values of the dead letter
--
-- Reply: {'stale'}       the shard was acquired under another token since; nothing was done
--     or {'moved', ID of the dead letter}
--     or {'known', ID}   it was moved before; acknowledged again, since it may
--                        have been redelivered
--     or {'unqueued'}    it is on no queue yet; nothing was done
--     or {'absent'}      it is not pending on this queue, nor unqueued; nothing was done
--
-- The digest tells an entry from another one that came to have its ID on a
-- stream that was recreated.
local function ack()
  if ARGV[2] == '' then return end
  adjust_pending(KEYS[5], {[ARGV[2]] = -redis.call('xack', KEYS[1], ARGV[1], ARGV[3])})
end

if (redis.call('hget', KEYS[4], ARGV[5]) or '') ~= ARGV[6] then return {'stale'} end
local name = ARGV[3] .. ' ' .. ARGV[4]
local known = redis.call('hget', KEYS[3], name)
if known then
  ack()
  return {'known', known}
end
if ARGV[2] ~= '' and #redis.call('xpending', KEYS[1], ARGV[1], ARGV[3], ARGV[3], 1, ARGV[2]) == 0 then
  local g = ARGV[7] == '1' and find_group(KEYS[1], ARGV[1])
  if not g or g.err or not after(ARGV[3], g['last-delivered-id']) then return {'absent'} end
  if #redis.call('xpending', KEYS[1], ARGV[1], ARGV[3], ARGV[3], 1) > 0 then return {'absent'} end -- it is on another one
  if #redis.call('xrange', KEYS[1], ARGV[3], ARGV[3]) > 0 then return {'unqueued'} end
end
local id = redis.call('xadd', KEYS[2], '*', unpack(ARGV, 8))
redis.call('hset', KEYS[3], name, id)
ack()
return {'moved', id}

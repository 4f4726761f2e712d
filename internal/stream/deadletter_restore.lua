#!lua
-- Adds a dead letter again that the server lost, unless its entry is still to be
-- decided by the owner of its shard.
--
-- KEYS[1] stream   KEYS[2] stream of dead letters   KEYS[3] hash of dead-lettered entries
-- KEYS[4] hash of the lengths of queues
-- ARGV[1] group   ARGV[2] source ID   ARGV[3] digest of the entry's content
-- ARGV[4] 1 if the entry was pending when it was given up
-- ARGV[5] 1 if the letter is known to have been added once
-- then the names and values of the dead letter
--
-- Reply: added, known, queued or decided; see protocol.Restored
--
-- An entry that was trimmed is added even if it is not pending any more: its owner may
-- have found it gone, and the letter is the only copy then. If it was stored instead,
-- the letter is one too many, and its replay a duplicate.
local name = ARGV[2] .. ' ' .. ARGV[3]
if redis.call('hexists', KEYS[3], name) == 1 then return 'known' end
local held
if ARGV[4] == '1' then
  local exists = #redis.call('xrange', KEYS[1], ARGV[2], ARGV[2]) > 0
  local g = find_group(KEYS[1], ARGV[1])
  if g and g.err then return g end
  if g then held = redis.call('xpending', KEYS[1], ARGV[1], ARGV[2], ARGV[2], 1)[1] end
  if exists and (not g or held or ARGV[5] ~= '1' and after(ARGV[2], g['last-delivered-id'])) then return 'queued' end -- or it will be
  if exists and ARGV[5] ~= '1' then return 'decided' end
end
local id = redis.call('xadd', KEYS[2], '*', unpack(ARGV, 6))
redis.call('hset', KEYS[3], name, id)
if held then adjust_pending(KEYS[4], {[held[2]] = -redis.call('xack', KEYS[1], ARGV[1], ARGV[2])}) end
return 'added'

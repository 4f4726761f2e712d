#!lua flags=no-writes
-- Tells which entries are still to be decided by the owners of their shards: they are in the
-- stream, and pending or not delivered yet. It changes nothing.
--
-- KEYS[1] stream   ARGV[1] group   then IDs
-- Reply: those of them
local g, found = find_group(KEYS[1], ARGV[1]), {}
if g and g.err then return g end
for i = 2, #ARGV do
  local id = ARGV[i]
  if (not g or after(id, g['last-delivered-id']) or #redis.call('xpending', KEYS[1], ARGV[1], id, id, 1) > 0)
      and #redis.call('xrange', KEYS[1], id, id) > 0 then
    found[#found + 1] = id
  end
end
return found

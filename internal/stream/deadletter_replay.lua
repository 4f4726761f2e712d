#!lua
-- Sends a dead letter again: adds its entry to the stream and removes the dead
-- letter, so that an interrupted replay can be taken up where it ended.
--
-- KEYS[1] stream   KEYS[2] stream of dead letters
-- ARGV[1] ID of the dead letter   then the names and values of the entry
-- Reply: the entry's ID, or '' when the dead letter no longer exists
if #redis.call('xrange', KEYS[2], ARGV[1], ARGV[1]) == 0 then return '' end
local id = redis.call('xadd', KEYS[1], '*', unpack(ARGV, 2))
redis.call('xdel', KEYS[2], ARGV[1])
return id

#!lua flags=allow-oom
-- Forgets dead-lettered entries whose record is unchanged.
--
-- KEYS[1] hash of dead-lettered entries   ARGV pairs of entry and ID of its dead letter
-- Reply: number of records removed
local n = 0
for i = 1, #ARGV, 2 do
  if redis.call('hget', KEYS[1], ARGV[i]) == ARGV[i + 1] then
    n = n + redis.call('hdel', KEYS[1], ARGV[i])
  end
end
return n

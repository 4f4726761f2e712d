#!lua flags=allow-oom
-- Forgets entries that were parked, where what is remembered is still the same.
--
-- KEYS[1] hash of parked entries   ARGV pairs of entry and ID of its dead letter
-- Reply: number of entries forgotten
local n = 0
for i = 1, #ARGV, 2 do
  if redis.call('hget', KEYS[1], ARGV[i]) == ARGV[i + 1] then
    n = n + redis.call('hdel', KEYS[1], ARGV[i])
  end
end
return n

#!lua
-- Appends changes of crossings to a stream that ends with a known entry: a leader that
-- another one has followed appends nothing. Not with allow-oom, so that a full server
-- refuses the whole of it.
--
-- KEYS[1] the stream
-- ARGV[1] ID of its last entry, '' for none   ARGV[2] maximum length, about
-- ARGV[3] number of arguments of an entry, then fields and values entry by entry
-- Reply: ID of the last entry, nil if the stream ends with another
local last = redis.call('xrevrange', KEYS[1], '+', '-', 'COUNT', 1)
local id = last[1] and last[1][1] or ''
if id ~= ARGV[1] then
  return false
end
local n = tonumber(ARGV[3])
for i = 4, #ARGV, n do
  id = redis.call('xadd', KEYS[1], 'MAXLEN', '~', ARGV[2], '*', unpack(ARGV, i, i + n - 1))
end
return id

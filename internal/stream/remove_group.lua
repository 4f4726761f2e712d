#!lua flags=allow-oom
-- Takes a group and everything that we keep for it away, if nothing of the stream is left to
-- do. An entry that was added since that was looked at keeps all of it.
--
-- KEYS[1] stream   KEYS[2] last ID of the stream as it was removed, for a while
-- KEYS[3] losses   then our other keys   ARGV[1] group
-- ARGV[2] '1' if no member ever served it: entries that were never dispatched are left as they are
-- Reply: {1}, or {0, entries pending, last-delivered ID, last ID of the stream}
local g = find_group(KEYS[1], ARGV[1])
if g and g.err then return g end
local last = '0-0'
local info = redis.pcall('xinfo', 'stream', KEYS[1])
if not info.err then last = pairs_of(info)['last-generated-id'] end
if g then
  if g['pending'] > 0 or ARGV[2] ~= '1' and after(last, g['last-delivered-id']) then
    return {0, g['pending'], g['last-delivered-id'], last}
  end
  if redis.call('llen', KEYS[3]) > 0 then return {0, 0, last, last} end
  redis.call('set', KEYS[2], last, 'ex', 86400)
  redis.call('xgroup', 'destroy', KEYS[1], ARGV[1])
elseif ARGV[2] ~= '1' and last ~= '0-0' and redis.call('get', KEYS[2]) ~= last then
  return {0, 0, '0-0', last}
end
for i = 3, #KEYS do redis.call('del', KEYS[i]) end
return {1}

#!lua flags=allow-oom
-- Takes a group and everything that we keep for it away, if nothing of the stream is left to
-- do. An entry that was added since that was looked at keeps all of it, and so does one that
-- was deleted before it was read, or vanished from its queue, until it is in the ledger.
--
-- KEYS[1] stream   KEYS[2] last ID of the stream as it was removed, for a while
-- KEYS[3] losses   KEYS[4] hash of the lengths of queues   KEYS[5] hash of applied IDs
-- then our other keys   ARGV[1] group
-- ARGV[2] '1' if no member ever served it: entries that were never dispatched are left as they are
-- Reply: {1}, or {0, entries pending, last-delivered ID, last ID of the stream}, or {2} if
-- losses are not in the ledger yet
local g = find_group(KEYS[1], ARGV[1])
if g and g.err then return g end
local last = '0-0'
local info = redis.pcall('xinfo', 'stream', KEYS[1])
local s = not info.err and pairs_of(info)
if s then last = s['last-generated-id'] end
if g then
  local delivered, read = g['last-delivered-id'], g['entries-read'] or nil
  if g['pending'] > 0 or ARGV[2] ~= '1' and s['last-entry'] and after(s['last-entry'][1], delivered) then
    return {0, g['pending'], delivered, last}
  end
  if ARGV[2] ~= '1' then
    local noted = note_unread(s, KEYS[3], delivered, read)
    if noted ~= read then move_to(KEYS[1], ARGV[1], KEYS[4], delivered, noted) end
  end
  for field in pairs(pairs_of(redis.call('hgetall', KEYS[4]))) do
    local shard = tonumber(string.match(field, '^shard%-(%d+)$'))
    if shard then
      check_pending(KEYS[4], KEYS[3], {}, field, shard, redis.call('hget', KEYS[5], shard), read_ahead(KEYS[4], delivered) or delivered)
    end
  end
  if redis.call('llen', KEYS[3]) > 0 then return {2} end
  redis.call('set', KEYS[2], last, 'ex', 86400)
  redis.call('xgroup', 'destroy', KEYS[1], ARGV[1])
elseif ARGV[2] ~= '1' and last ~= '0-0' and redis.call('get', KEYS[2]) ~= last then
  return {0, 0, '0-0', last}
end
for i = 3, #KEYS do redis.call('del', KEYS[i]) end
return {1}

#!lua flags=allow-oom
-- Takes a snapshot of the ends of the stream and of entries that must exist, in
-- one step: what is trimmed in between would be mistaken for lost. No body leaves
-- the server. What it shows to be lost is noted as lost in the same step.
--
-- KEYS[1] stream   KEYS[2] hash of the lengths of queues   KEYS[3] losses
-- KEYS[4] hash of applied IDs   KEYS[5] dispatch lease   KEYS[6] last ID dispatched
-- ARGV[1] group   ARGV[2] number of shards   then IDs
-- Reply: {} without the stream or the group, or {first entry, newest entry, both
-- '' in an empty stream, last ID generated, highest ID deleted, entries ever
-- removed, milliseconds since 1970, the IDs that are missing …}
local g = find_group(KEYS[1], ARGV[1])
if not g then return {} end
if g.err then return g end
local s = pairs_of(redis.call('xinfo', 'stream', KEYS[1]))
local first, newest = s['first-entry'] and s['first-entry'][1] or '', s['last-entry'] and s['last-entry'][1] or ''
local removed, delivered = s['entries-added'] - s['length'], g['last-delivered-id']

-- It is noted now: the next entry to be dispatched may be far away.
local ahead, token, count, unqueued, number = read_ahead(KEYS[2], delivered)
if ahead and token ~= '-' then
  -- What was trimmed between the two was read: the dispatcher has it in hand. If there is
  -- another one by now, it looks for itself.
  if redis.call('get', KEYS[5]) == token then
    local read = note_unread(s, KEYS[3], ahead, count, KEYS[2])
    if read ~= count then
      set_ahead(KEYS[2], token, ahead, read, unqueued, number)
    end
  end
else
  local before = g['entries-read'] or nil
  local read = note_unread(s, KEYS[3], delivered, before, KEYS[2])
  if read ~= before then move_to(KEYS[1], ARGV[1], KEYS[2], delivered, read) end
end

if not made_again(KEYS[6], delivered) then
  local counts = count_pending(KEYS[1], ARGV[1])
  for shard = 0, ARGV[2] - 1 do
    check_pending(KEYS[2], KEYS[3], counts, string.format('shard-%02d', shard), shard,
      redis.call('hget', KEYS[4], shard), ahead or delivered)
  end
end

local now = redis.call('time')
local answer = {first, newest, s['last-generated-id'], s['max-deleted-entry-id'], tostring(removed),
  string.format('%.0f', now[1] * 1000 + math.floor(now[2] / 1000))}
for i = 3, #ARGV do
  if #redis.call('xrange', KEYS[1], ARGV[i], ARGV[i], 'COUNT', 1) == 0 then answer[#answer + 1] = ARGV[i] end
end
return answer

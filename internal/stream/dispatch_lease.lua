#!lua flags=allow-oom
-- Acquires or renews the dispatch lease, and creates the group if it is missing.
--
-- KEYS[1] stream   KEYS[2] dispatch lease   KEYS[3] last ID dispatched
-- KEYS[4] hash of acked IDs   KEYS[5] list of group recreations   KEYS[6] the fleet's database
-- KEYS[7] hash of the lengths of queues   KEYS[8] number of shards of the fleet
-- KEYS[9] there while dispatching is paused   KEYS[10] losses
-- ARGV[1] group    ARGV[2] token of the lease before, '' for none
-- ARGV[3] token to hold from now on   ARGV[4] lease in milliseconds
-- ARGV[5] number of shards   ARGV[6] notification channel   ARGV[7] our database, '' for any
--
-- Reply: {0, milliseconds left to the holder, last-delivered ID as dispatching left it or '',
--         the last ID that the dispatcher has read, if that lies beyond it, else ''}, or until
--         the fleet's database is known
--     or {2, the fleet's database}, which is not ours
--     or {3, the fleet's number of shards}, which is not ours; the lease is free then
--     or {1, last-delivered ID, what was done: 1 the group was created, 2 its
--         last-delivered ID was set back to where dispatching had left it, 0 neither,
--         entries pending in the group, 1 if dispatching is paused, and the last ID that an
--         earlier dispatcher read, if that lies beyond the last-delivered one, else ''}
--
-- The group is created here and nowhere else, always at 0: no dispatch that was
-- based on the old group succeeds under the new token.
if ARGV[7] ~= '' then
  local fleet = redis.call('get', KEYS[6])
  if not fleet then return {0, 50, '', ''} end
  if string.match(fleet, '^%S+') ~= ARGV[7] then return {2, fleet} end
end
local holder = redis.call('get', KEYS[2])
if holder and holder ~= ARGV[2] then
  -- A server whose clock stepped back keeps a dead holder's lease for that much
  -- longer. A valid lease never ends later than this, so LT changes nothing.
  redis.call('pexpire', KEYS[2], ARGV[4], 'LT')
  local last = redis.call('get', KEYS[3])
  return {0, redis.call('pttl', KEYS[2]), last or '', last and read_ahead(KEYS[7], last) or ''}
end
-- Dispatching by an earlier number of shards would break the order of devices.
local shards = redis.call('get', KEYS[8])
if shards and shards ~= ARGV[5] then
  redis.call('del', KEYS[2])
  return {3, shards}
end
local paused = redis.call('exists', KEYS[9])
redis.call('set', KEYS[2], ARGV[3], 'px', ARGV[4])

-- read_beyond returns where another dispatch lease read ahead to, beyond an ID. Entries
-- of that which were trimmed are noted as lost without their number: the dispatcher may have
-- finished some. None is unqueued any more: the lag is what follows the last-delivered ID.
local function read_beyond(group, id)
  local ahead, token, count = read_ahead(KEYS[7], id)
  if not ahead or token == ARGV[3] then return '' end
  set_ahead(KEYS[7], token, ahead, count, '-')
  local s = pairs_of(redis.call('xinfo', 'stream', KEYS[1]))
  local read = group['entries-read'] or read_until(KEYS[7], id)
  if token ~= '-' then
    local noted = note_redispatched(s, KEYS[10], id, read, ahead, count, 0)
    if noted ~= read then move_to(KEYS[1], ARGV[1], KEYS[7], id, noted) end
  end
  if not s['last-entry'] or not after(s['last-entry'][1], id) then
    redis.call('hdel', KEYS[7], 'ahead')
    return ''
  end
  return ahead
end

-- cut_acked lowers acked marks ahead of the clock, of entries that are gone with an earlier state of the
-- stream: each owner would put the whole backlog on its queue.
local function cut_acked(last)
  local clock = redis.call('time')[1] .. '999-0'
  for shard, mark in pairs(pairs_of(redis.call('hgetall', KEYS[4]))) do
    if after(mark, last) and after(mark, clock) then redis.call('hset', KEYS[4], shard, last) end
  end
end

-- record_recreation records that all of the stream is dispatched again: before is the last ID dispatched, counts are
-- the entries pending. The leader learns from the record whether a group was lost and when redelivery is
-- complete, and tells what was trimmed unread. What is no more on a queue, or was unqueued, and trimmed does not come
-- again: how many these are is not known, only that they followed what is acknowledged of their shard. Entries that were trimmed before there was
-- a group were never ours to read. It returns how many count as read.
local function record_recreation(before, counts)
  local s = pairs_of(redis.call('xinfo', 'stream', KEYS[1]))
  local removed, last = s['entries-added'] - s['length'], s['last-generated-id']
  local first = s['first-entry'] and s['first-entry'][1]
  local from = read_ahead(KEYS[7], before) and before
  for shard = 0, ARGV[5] - 1 do
    local consumer, acked = string.format('shard-%02d', shard), redis.call('hget', KEYS[4], shard) or '0-0'
    local recorded, now = tonumber(redis.call('hget', KEYS[7], consumer) or ''), counts[consumer] or 0
    if recorded and now < recorded and (not from or after(from, acked)) then from = acked end
    redis.call('hset', KEYS[7], consumer, now)
  end
  if removed > 0 and from and after(first or last, from) then
    redis.call('rpush', KEYS[10], cjson.encode({cause = 'trimmed_pending', first = from, last = first or last}))
  end
  move_to(KEYS[1], ARGV[1], KEYS[7], '0-0', removed)
  local now = redis.call('time')
  redis.call('rpush', KEYS[5], cjson.encode({
    at = now[1] * 1000 + math.floor(now[2] / 1000), dispatched = before,
    entries = s['length'], removed = removed, first = first or '0-0', last = last}))
  redis.call('ltrim', KEYS[5], -100, -1)
  return removed
end

local g = find_group(KEYS[1], ARGV[1])
if g and g.err then return g end
if g then
  -- A client that moved the last-delivered ID forward, with XGROUP SETID or by
  -- reading with '>', bypassed us. Dispatching its entries is right even if they are done.
  local last, dispatched = g['last-delivered-id'], redis.call('get', KEYS[3])
  if dispatched and after(last, dispatched) then
    move_to(KEYS[1], ARGV[1], KEYS[7], dispatched, read_until(KEYS[7], dispatched))
    -- What it took until there is dispatched again: nobody of us has read it.
    local beyond, newest = read_beyond({}, dispatched), pairs_of(redis.call('xinfo', 'stream', KEYS[1]))['last-generated-id']
    if after(last, newest) then last = newest end
    if after(last, dispatched) and (beyond == '' or after(last, beyond)) then
      beyond = last
      set_ahead(KEYS[7], '-', last, nil, '-')
    end
    return {1, dispatched, 2, g['pending'], paused, beyond}
  end
  if dispatched and after(dispatched, last) then
    cut_acked(pairs_of(redis.call('xinfo', 'stream', KEYS[1]))['last-generated-id'])
  end
  if made_again(KEYS[3], last) then
    g['entries-read'] = record_recreation(dispatched, count_pending(KEYS[1], ARGV[1]))
  end
  redis.call('set', KEYS[3], last)
  return {1, last, 0, g['pending'], paused, read_beyond(g, last)}
end
local created = redis.pcall('xgroup', 'create', KEYS[1], ARGV[1], '0', 'mkstream')
if created.err then return created end
cut_acked(pairs_of(redis.call('xinfo', 'stream', KEYS[1]))['last-generated-id'])
record_recreation(redis.call('get', KEYS[3]) or '0-0', {})
redis.call('del', KEYS[3])
redis.call('hdel', KEYS[7], 'ahead', 'noted')
-- Nothing was acknowledged in a group that is new: a mark that is missing later
-- was lost, and everything that was delivered may have been acknowledged.
for shard = 0, ARGV[5] - 1 do redis.call('hsetnx', KEYS[4], shard, '0-0') end
redis.call('publish', ARGV[6], 'group')
return {1, '0-0', 1, 0, paused, ''}

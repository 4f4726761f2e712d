#!lua flags=allow-oom
-- Puts new entries on the queues of their shards. All of it happens, or nothing.
-- In a backlog the dispatcher leaves entries of its own shards unqueued: the last-delivered ID
-- stays behind them, and how far the dispatcher has read is kept beside it.
--
-- KEYS[1] stream   KEYS[2] dispatch lease   KEYS[3] losses   KEYS[4] last ID dispatched
-- KEYS[5] hash of the lengths of queues
-- ARGV[1] group    ARGV[2] token   ARGV[3] lease in milliseconds
-- ARGV[4] last-delivered ID as it should be   ARGV[5] last-delivered ID from now on
-- ARGV[6] entries read until there, '' if that is unknown or told by the end of the read
-- ARGV[7] ID that the read started after   ARGV[8] last ID read   ARGV[9] entries read
-- ARGV[10] '1' if the read was not cut short: it may have reached the stream's end
-- ARGV[11] notification channel, or ''   ARGV[12] notification payload
-- ARGV[13] entries that are unqueued from now on   ARGV[14] dispatches under this lease before
-- then for each shard, once or more: 'new', 'again' for entries of earlier reads or 'unqueued' for those
-- of them that are in flight; the number of arguments that follow, and these,
-- which are those of XCLAIM: consumer, 0, IDs, RETRYCOUNT 0 FORCE JUSTID
--
-- Reply: {'lease'}       the dispatch lease has another token; nothing was done
--     or {'group'}      the group is missing; nothing was done
--     or {'moved', id}  the last-delivered ID, or how far this lease has read ahead of it, is
--         not what it should be; nothing was done
--     or {'dispatched', pending in the group, entries read until the last ID read or -1,
--         IDs that were trimmed since the read …}, noted as lost unless they are in flight
if redis.call('get', KEYS[2]) ~= ARGV[2] then return {'lease'} end

local g = find_group(KEYS[1], ARGV[1])
if not g or g.err then return {'group'} end
if g['last-delivered-id'] ~= ARGV[4] then return {'moved', g['last-delivered-id']} end

local ahead
if ARGV[7] ~= ARGV[4] then
  local last, token, count, _, number = read_ahead(KEYS[5], ARGV[4])
  -- A server that does not know of the last dispatch has lost it, and perhaps what it was based on. One
  -- that put entries on queues and moved neither ID is known by its number.
  if last ~= ARGV[7] or token ~= ARGV[2] or number ~= ARGV[14] then return {'moved', ARGV[4]} end
  ahead = count
end
-- What a former dispatcher has read is dispatched again: it may have finished what was trimmed of that.
local until_there, former, known
if ARGV[7] == ARGV[4] then until_there, former, known = read_ahead(KEYS[5], ARGV[4]) end
if former == '-' then until_there = nil end

local answer = {'dispatched', 0, -1}
local pending, added, trimmed = g['pending'], {}, 0
local unsure = {} -- those of the trimmed
local noted_before = 0 -- by a snapshot since the read: once is enough
local i = 15
while i <= #ARGV do
  local kind, n = ARGV[i], tonumber(ARGV[i + 1])
  local first, consumer = i + 2, ARGV[i + 2]
  local claimed = redis.call('xclaim', KEYS[1], ARGV[1], unpack(ARGV, first, first + n - 1))
  pending = pending + #claimed
  added[consumer] = (added[consumer] or 0) + #claimed
  if #claimed < n - 6 then
    local there = {}
    for _, id in ipairs(claimed) do there[id] = true end
    for j = first + 2, first + n - 5 do
      if not there[ARGV[j]] then
        answer[#answer + 1] = ARGV[j]
        local noted = kind == 'new' and noted_behind(KEYS[5], ARGV[7], ARGV[j])
        if noted then
          noted_before = noted_before + 1
        elseif kind == 'new' then
          trimmed = trimmed + 1
        end
        if kind == 'new' and not noted and until_there and not after(ARGV[j], until_there) then
          unsure[#unsure + 1] = ARGV[j]
        elseif kind ~= 'unqueued' and not noted then
          redis.call('rpush', KEYS[3], cjson.encode({
            cause = 'trimmed_unread', consumer = consumer, first = ARGV[j], last = ARGV[j], entries = 1}))
        end
      end
    end
  end
  i = first + n
end

-- entries-read is what lag is computed from. It moves by what was read.
local read = ahead
if ARGV[7] == ARGV[4] then read = g['entries-read'] or read_until(KEYS[5], ARGV[4]) end
if until_there then
  local noted = note_redispatched(
    pairs_of(redis.call('xinfo', 'stream', KEYS[1])), KEYS[3], ARGV[7], read, until_there, known, trimmed - #unsure)
  if noted ~= read then
    if ARGV[5] == ARGV[4] then move_to(KEYS[1], ARGV[1], KEYS[5], ARGV[4], noted) end
    read = noted - trimmed -- they are among the removed
  elseif #unsure > 0 then
    redis.call('rpush', KEYS[3], cjson.encode({cause = 'trimmed_unread', first = unsure[1], last = unsure[#unsure]}))
  end
end
if not read then
  read = note_unread(pairs_of(redis.call('xinfo', 'stream', KEYS[1])), KEYS[3], ARGV[7])
  if read then read = read - trimmed end -- those trimmed since the read are among the removed
end
if read then read = read + ARGV[9] - noted_before end
local settled = ARGV[5] == ARGV[8]
if ARGV[5] ~= ARGV[4] then
  move_to(KEYS[1], ARGV[1], KEYS[5], ARGV[5], settled and read or tonumber(ARGV[6]))
end

-- Entries that were pending already, as after the last-delivered ID was set
-- back, add nothing to a queue; which they were is not known here.
g = find_group(KEYS[1], ARGV[1])
answer[2] = g['pending']
if g['pending'] == pending then
  adjust_pending(KEYS[5], added)
else
  for consumer in pairs(added) do redis.call('hdel', KEYS[5], consumer) end
end

-- It is set right, the gap noted as lost, whenever the end of the stream is reached. To ask
-- for the number of entries added costs the bodies of both ends, of up to many megabytes:
-- the group's lag tells it, and where something follows it is not the end.
local entries = g['entries-read'] and g['lag'] and g['entries-read'] + g['lag']
if ARGV[10] == '1' and (not read or entries ~= read)
    and #redis.call('xrange', KEYS[1], '(' .. ARGV[8], '+', 'COUNT', 1) == 0 then
  local s = pairs_of(redis.call('xinfo', 'stream', KEYS[1]))
  if s['last-generated-id'] == ARGV[8] then
    if read and s['entries-added'] > read then
      redis.call('rpush', KEYS[3], cjson.encode({
        cause = 'trimmed_unread', first = ARGV[7], last = ARGV[8], entries = s['entries-added'] - read}))
    end
    read = s['entries-added']
    if settled then move_to(KEYS[1], ARGV[1], KEYS[5], ARGV[8], read) end
  end
end
if not settled then
  set_ahead(KEYS[5], ARGV[2], ARGV[8], read, ARGV[13], ARGV[14] + 1)
elseif ARGV[7] ~= ARGV[4] or g['lag'] == 0 then
  redis.call('hdel', KEYS[5], 'ahead')
end
if read then answer[3] = read end

redis.call('set', KEYS[4], ARGV[5])
redis.call('pexpire', KEYS[2], ARGV[3])
if ARGV[11] ~= '' then redis.call('publish', ARGV[11], ARGV[12]) end
return answer

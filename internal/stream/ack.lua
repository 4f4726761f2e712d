#!lua flags=allow-oom
-- Acknowledges entries and moves their shards' acked marks, in one step: a mark
-- that lagged behind would hide from the next owner what Postgres may have lost.
--
-- KEYS[1] stream   KEYS[2] hash of acked IDs   KEYS[3] losses
-- KEYS[4] hash of tokens under which shards were acquired
-- KEYS[5] hash of the lengths of queues   KEYS[6] hash of applied IDs
-- ARGV[1] group, then for each shard: shard, its consumer, token, cause of loss or '',
-- applied ID that Postgres now has, or '', highest ID finished or '', number of IDs, the IDs.
-- Finished entries that were unqueued are on no queue: the mark moves past them, and their IDs are not given
-- Reply: shards that were acquired under another token since; nothing is acknowledged for them
--
-- Entries with a cause of loss are noted as lost if they were still pending,
-- so that a repeated call notes them once.

local shards, i = {}, 2
while i <= #ARGV do
  shards[#shards + 1] = ARGV[i]
  i = i + 7 + ARGV[i + 6]
end
local tokens, marks = fetch_fields(KEYS[4], shards), fetch_fields(KEYS[2], shards)

local refused, changes, moved, all_applied = {}, {}, {}, {}
i = 2
while i <= #ARGV do
  local shard, consumer, token, cause = ARGV[i], ARGV[i + 1], ARGV[i + 2], ARGV[i + 3]
  local applied, top, n = ARGV[i + 4], ARGV[i + 5], tonumber(ARGV[i + 6])
  if (tokens[shard] or '') ~= token then
    refused[#refused + 1] = tonumber(shard)
  elseif cause == '' then
    if n > 0 then
      changes[consumer] = (changes[consumer] or 0) - redis.call('xack', KEYS[1], ARGV[1], unpack(ARGV, i + 7, i + 6 + n))
    end
    if top ~= '' and (not marks[shard] or after(top, marks[shard])) then
      marks[shard] = top
      moved[#moved + 1] = shard
      moved[#moved + 1] = top
    end
    if applied ~= '' then
      all_applied[#all_applied + 1] = shard
      all_applied[#all_applied + 1] = applied
    end
  else
    for j = i + 7, i + 6 + n do
      if redis.call('xack', KEYS[1], ARGV[1], ARGV[j]) == 1 then
        changes[consumer] = (changes[consumer] or 0) - 1
        redis.call('rpush', KEYS[3], cjson.encode({
          cause = cause, shard = tonumber(shard), first = ARGV[j], last = ARGV[j], entries = 1}))
      end
    end
  end
  i = i + 7 + n
end
adjust_pending(KEYS[5], changes)
set_fields(KEYS[2], moved)
set_fields(KEYS[6], all_applied)
return refused

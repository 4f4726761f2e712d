#!lua flags=allow-oom
-- Acknowledges entries and moves their shards' acked marks, in one step: a mark
-- that lagged behind would hide from the next owner what Postgres may have lost.
--
-- KEYS[1] stream   KEYS[2] hash of acked IDs   KEYS[3] losses
-- KEYS[4] hash of the owner tokens of shards
-- ARGV[1] group, then for each shard: shard, token, cause of loss or '',
-- highest ID, number of IDs, the IDs
-- Reply: shards that were acquired under another token since; nothing is acknowledged for them
--
-- Entries with a cause of loss are noted as lost if they were still pending,
-- so that a repeated call notes them once.
local function after(a, b)
  local ams, aseq = string.match(a, '^(%d+)-(%d+)$')
  local bms, bseq = string.match(b, '^(%d+)-(%d+)$')
  if #ams ~= #bms then return #ams > #bms end
  if ams ~= bms then return ams > bms end
  if #aseq ~= #bseq then return #aseq > #bseq end
  return aseq > bseq
end

local refused = {}
local i = 2
while i <= #ARGV do
  local shard, token, cause, top, n = ARGV[i], ARGV[i + 1], ARGV[i + 2], ARGV[i + 3], tonumber(ARGV[i + 4])
  if (redis.call('hget', KEYS[4], shard) or '') ~= token then
    refused[#refused + 1] = tonumber(shard)
  elseif cause == '' then
    redis.call('xack', KEYS[1], ARGV[1], unpack(ARGV, i + 5, i + 4 + n))
    local acked = redis.call('hget', KEYS[2], shard)
    if not acked or after(top, acked) then redis.call('hset', KEYS[2], shard, top) end
  else
    for j = i + 5, i + 4 + n do
      if redis.call('xack', KEYS[1], ARGV[1], ARGV[j]) == 1 then
        redis.call('rpush', KEYS[3], cjson.encode({
          cause = cause, shard = tonumber(shard), first = ARGV[j], last = ARGV[j], entries = 1}))
      end
    end
  end
  i = i + 5 + n
end
return refused

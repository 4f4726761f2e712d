#!lua flags=allow-oom
-- Acknowledges entries and moves their shards' acked marks, in one step: a mark
-- that lagged behind would hide from the next owner what Postgres may have lost.
--
-- KEYS[1] stream   KEYS[2] hash of marks   KEYS[3] losses
-- ARGV[1] group, then for each shard: shard, cause of loss or '',
-- highest ID, number of IDs, the IDs
-- Reply: number of entries acknowledged
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

local acked = 0
local i = 2
while i <= #ARGV do
  local shard, cause, top, n = ARGV[i], ARGV[i + 1], ARGV[i + 2], tonumber(ARGV[i + 3])
  if cause == '' then
    acked = acked + redis.call('xack', KEYS[1], ARGV[1], unpack(ARGV, i + 4, i + 3 + n))
    local mark = redis.call('hget', KEYS[2], shard)
    if not mark or after(top, mark) then redis.call('hset', KEYS[2], shard, top) end
  else
    for j = i + 4, i + 3 + n do
      if redis.call('xack', KEYS[1], ARGV[1], ARGV[j]) == 1 then
        acked = acked + 1
        redis.call('rpush', KEYS[3], cjson.encode({
          cause = cause, shard = tonumber(shard), first = ARGV[j], last = ARGV[j], entries = 1}))
      end
    end
  end
  i = i + 4 + n
end
return acked

#!lua
-- Adds a dead letter again that the server lost, unless its entry is still to be
-- decided by the owner of its shard.
--
-- KEYS[1] stream   KEYS[2] stream of dead letters   KEYS[3] hash of dead-lettered entries
-- ARGV[1] group   ARGV[2] source ID   ARGV[3] digest of the entry's content
-- ARGV[4] 1 if the entry was pending when it was given up
-- ARGV[5] 1 if the letter is known to have been added once
-- then the names and values of the dead letter
--
-- Reply: added, known, queued or decided; see protocol.Restored
local function before(a, b)
  local ams, aseq = string.match(a, '^(%d+)-(%d+)$')
  local bms, bseq = string.match(b, '^(%d+)-(%d+)$')
  if #ams ~= #bms then return #ams < #bms end
  if ams ~= bms then return ams < bms end
  if #aseq ~= #bseq then return #aseq < #bseq end
  return aseq < bseq
end

local name = ARGV[2] .. ' ' .. ARGV[3]
if redis.call('hexists', KEYS[3], name) == 1 then return 'known' end
local pending = false
if ARGV[4] == '1' then
  local exists = #redis.call('xrange', KEYS[1], ARGV[2], ARGV[2]) > 0
  local list = redis.pcall('xpending', KEYS[1], ARGV[1], ARGV[2], ARGV[2], 1)
  if list.err then
    if exists then return 'queued' end -- there is no group; it will be recreated before the entry
  else
    pending = #list > 0
    if exists and pending then return 'queued' end
    if exists then
      for _, group in ipairs(redis.call('xinfo', 'groups', KEYS[1])) do
        local fields = {}
        for i = 1, #group, 2 do fields[group[i]] = group[i + 1] end
        if fields['name'] == ARGV[1] and before(fields['last-delivered-id'], ARGV[2]) then return 'queued' end
      end
    end
  end
  if ARGV[5] ~= '1' and not pending then return 'decided' end
end
local id = redis.call('xadd', KEYS[2], '*', unpack(ARGV, 6))
redis.call('hset', KEYS[3], name, id)
if pending then redis.call('xack', KEYS[1], ARGV[1], ARGV[2]) end -- its content was trimmed
return 'added'

#!lua flags=no-writes
-- Takes a snapshot of the ends of the stream and of entries that must exist, in
-- one step: what is trimmed in between would be mistaken for lost. No body leaves
-- the server.
--
-- KEYS[1] stream   ARGV[1] group   then IDs
-- Reply: {} without the stream or the group, or {first entry, newest entry, both
-- '' in an empty stream, last ID generated, highest ID deleted, entries ever
-- removed, the IDs that are missing …}
local rows = redis.pcall('xinfo', 'groups', KEYS[1])
if rows.err then return {} end
local there = false
for _, row in ipairs(rows) do
  for i = 1, #row, 2 do
    if row[i] == 'name' and row[i + 1] == ARGV[1] then there = true end
  end
end
if not there then return {} end

local s = {}
local info = redis.call('xinfo', 'stream', KEYS[1])
for i = 1, #info, 2 do s[info[i]] = info[i + 1] end
local answer = {
  s['first-entry'] and s['first-entry'][1] or '', s['last-entry'] and s['last-entry'][1] or '',
  s['last-generated-id'], s['max-deleted-entry-id'],
  tostring(s['entries-added'] - s['length'])}
for i = 2, #ARGV do
  if #redis.call('xrange', KEYS[1], ARGV[i], ARGV[i], 'COUNT', 1) == 0 then answer[#answer + 1] = ARGV[i] end
end
return answer

#!lua flags=no-writes
-- Identifies the server that answers for a key, and its replication history.
--
-- KEYS[1] any key of the group's
-- Reply: its run_id, a space and its replication ID, or '' where it does not tell
--
-- A replica that is promoted stays the same process, and goes on under another
-- replication ID.
local function ask(section, field)
  local info = redis.pcall('info', section)
  return type(info) == 'string' and string.match(info, field .. ':(%w+)')
end
local run_id, history = ask('server', 'run_id'), ask('replication', 'master_replid')
if not run_id or not history then return '' end
return run_id .. ' ' .. history

#!lua flags=allow-oom
-- Removes a foreign consumer that has nothing pending and has been idle for a
-- while. A bare XGROUP DELCONSUMER would discard its pending entries.
--
-- KEYS[1] stream   ARGV[1] group   ARGV[2] consumer   ARGV[3] minimum idle time in milliseconds
-- Reply: 1 if it was removed
for _, row in ipairs(redis.call('xinfo', 'consumers', KEYS[1], ARGV[1])) do
  local c = {}
  for i = 1, #row, 2 do c[row[i]] = row[i + 1] end
  if c['name'] == ARGV[2] and c['pending'] == 0 and c['idle'] >= tonumber(ARGV[3]) then
    redis.call('xgroup', 'delconsumer', KEYS[1], ARGV[1], ARGV[2])
    return 1
  end
end
return 0

#!lua flags=allow-oom
-- Renews the heartbeat of a member.
--
-- KEYS[1] the identity's heartbeat   KEYS[2] set of identities
-- ARGV[1] incarnation   ARGV[2] heartbeat   ARGV[3] time to live in milliseconds   ARGV[4] identity
-- Reply: '' or, when another incarnation has the identity, its heartbeat
local current = redis.call('get', KEYS[1])
if current and cjson.decode(current)['incarnation'] ~= ARGV[1] then
  -- After a clock that stepped back the key would expire late; LT bounds the wait.
  redis.call('pexpire', KEYS[1], ARGV[3], 'LT')
  return current
end
redis.call('set', KEYS[1], ARGV[2], 'px', ARGV[3])
redis.call('sadd', KEYS[2], ARGV[4])
return ''

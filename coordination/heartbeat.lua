#!lua flags=allow-oom
-- Renews the heartbeat of a member.
--
-- KEYS[1] the identity's heartbeat   KEYS[2] set of identities
-- ARGV[1] incarnation   ARGV[2] heartbeat   ARGV[3] time to live in milliseconds   ARGV[4] identity
-- KEYS[3] the fleet's database
-- ARGV[5] our database, '' for any   ARGV[6] its address   ARGV[7] '1' to enter it where none is entered
-- ARGV[8] the server it is on, of a member that joins; else, and where it is not known, ''
-- Reply: {'', ''}
--     or {'held', heartbeat of another incarnation that has the identity}
--     or {'database', identity and address of the fleet's database, which is not ours}
--     or {'copy', another member, its address} which has our database on another server
--     or {'unknown', ''} where the fleet's database is not entered and was not to be

-- read_beat returns a heartbeat and its text, nil where it is missing or not one of ours: what
-- another program has left there must not keep all members from beating.
local function read_beat(key)
  local text = redis.pcall('get', key)
  local ok, beat = pcall(cjson.decode, text)
  if not ok or type(beat) ~= 'table' or not beat['incarnation'] then return nil end
  for _, field in ipairs({'incarnation', 'database', 'postgres', 'server'}) do
    if beat[field] and type(beat[field]) ~= 'string' then return nil end
  end
  return beat, text
end

if ARGV[8] ~= '' then
  for _, identity in ipairs(redis.call('smembers', KEYS[2])) do
    local beat = identity ~= ARGV[4] and read_beat(KEYS[2] .. ':' .. identity)
    if beat and not beat['left'] and beat['database'] == ARGV[5] and beat['server'] and beat['server'] ~= ARGV[8] then
      return {'copy', identity, beat['postgres'] or ''}
    end
  end
end
if ARGV[5] ~= '' then
  local fleet = redis.call('get', KEYS[3])
  if not fleet then
    for _, identity in ipairs(redis.call('smembers', KEYS[2])) do
      local beat = read_beat(KEYS[2] .. ':' .. identity)
      if beat and not beat['left'] and beat['database'] and beat['database'] ~= '' and beat['database'] ~= ARGV[5] then
        return {'database', beat['database'] .. ' ' .. (beat['postgres'] or '')}
      end
    end
    if ARGV[7] ~= '1' then return {'unknown', ''} end
    redis.call('set', KEYS[3], ARGV[5] .. ' ' .. ARGV[6])
  elseif string.match(fleet, '^%S+') ~= ARGV[5] then
    return {'database', fleet}
  end
end
local holder, current = read_beat(KEYS[1])
if holder and holder['incarnation'] ~= ARGV[1] and not holder['left'] then
  -- After a clock that stepped back the key would expire late; LT bounds the wait.
  redis.call('pexpire', KEYS[1], ARGV[3], 'LT')
  return {'held', current}
end
if holder and holder['incarnation'] == ARGV[1] and holder['left'] then return {'', ''} end -- a beat that comes late
-- A copy of this server, as a replica, has the heartbeats too: each names the server that it was sent to.
local info, text = redis.pcall('info', 'server'), ARGV[2]
local server = type(info) == 'string' and string.match(info, 'run_id:(%w+)')
if server then text = '{"redis":"' .. server .. '",' .. string.sub(text, 2) end
redis.call('set', KEYS[1], text, 'px', ARGV[3])
redis.call('sadd', KEYS[2], ARGV[4])
redis.call('pexpire', KEYS[2], 86400000) -- of a fleet that ended nothing stays
return {'', ''}

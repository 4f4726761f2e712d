-- What several scripts share; it follows their first line.

-- after reports whether an ID follows another in the stream.
local function after(a, b)
  local ams, aseq = string.match(a, '^(%d+)-(%d+)$')
  local bms, bseq = string.match(b, '^(%d+)-(%d+)$')
  if #ams ~= #bms then return #ams > #bms end
  if ams ~= bms then return ams > bms end
  if #aseq ~= #bseq then return #aseq > #bseq end
  return aseq > bseq
end

-- pairs_of makes a table of a reply that alternates names and values.
local function pairs_of(reply)
  local t = {}
  for i = 1, #reply, 2 do t[reply[i]] = reply[i + 1] end
  return t
end

-- find_group returns the group's row of XINFO GROUPS, nil where it is missing,
-- and the server's error for a key that is no stream.
local function find_group(stream, name)
  local rows = redis.pcall('xinfo', 'groups', stream)
  if rows.err then
    if string.find(rows.err, '^WRONGTYPE') then return rows end
    return nil
  end
  for _, row in ipairs(rows) do
    local g = pairs_of(row)
    if g['name'] == name then return g end
  end
end

-- count_pending returns the number of pending entries by consumer.
local function count_pending(stream, group)
  local counts = {}
  for _, row in ipairs(redis.call('xpending', stream, group)[4] or {}) do counts[row[1]] = tonumber(row[2]) end
  return counts
end

-- Lua's stack takes about 8,000 values: of a list as long as there are shards, or parts of
-- a batch, so many are passed on at a time. An error in the middle would leave a script half done.
local most = 4000

-- in_steps calls f with all of a list, so many values at a time, and the index of the first.
local function in_steps(list, f)
  for i = 1, #list, most do f(i, unpack(list, i, math.min(i + most - 1, #list))) end
end

-- set_fields sets fields of a hash, given as names and values in turn.
local function set_fields(key, fields)
  in_steps(fields, function(_, ...) redis.call('hset', key, ...) end)
end

-- fetch_fields returns a hash's fields as a table. A small hash is a list: to find each
-- of many fields walks it again and again, to read it once is cheaper.
local function fetch_fields(key, fields)
  if 4 * #fields > redis.call('hlen', key) then return pairs_of(redis.call('hgetall', key)) end
  local t = {}
  in_steps(fields, function(first, ...)
    for i, value in ipairs(redis.call('hmget', key, ...)) do t[fields[first + i - 1]] = value end
  end)
  return t
end

-- adjust_pending changes the recorded lengths of queues, by consumer. A length
-- that is unknown remains so.
local function adjust_pending(key, changes)
  local consumers, lengths = {}, {}
  for consumer in pairs(changes) do consumers[#consumers + 1] = consumer end
  local known = fetch_fields(key, consumers)
  for consumer, change in pairs(changes) do
    if known[consumer] then
      lengths[#lengths + 1] = consumer
      lengths[#lengths + 1] = known[consumer] + change
    end
  end
  set_fields(key, lengths)
end

-- check_pending compares the length of a queue with the recorded one. Entries
-- leave a queue only by scripts that record it, so what is missing went without
-- being acknowledged: a rewrite of the append-only file drops pending entries
-- that were trimmed, XGROUP DELCONSUMER drops them all. They are noted as lost,
-- between what Postgres is known to have of the shard and what was dispatched.
local function check_pending(key, losses, counts, consumer, shard, applied, delivered)
  local now, recorded = counts[consumer] or 0, tonumber(redis.call('hget', key, consumer) or '')
  if recorded and now < recorded then
    if applied and after(applied, delivered) then delivered = applied end
    redis.call('rpush', losses, cjson.encode({
      cause = 'trimmed_pending', shard = shard, first = applied or '0-0', last = delivered, entries = recorded - now}))
  end
  if recorded ~= now then redis.call('hset', key, consumer, now) end
end

-- made_again reports whether another client made the group again at 0, or set it back there: what was on the
-- queues is dispatched again, and dispatch_lease.lua notes what was trimmed of it.
local function made_again(dispatched, delivered)
  return delivered == '0-0' and (redis.call('get', dispatched) or '0-0') ~= '0-0'
end

-- Redis forgets how many entries a group has read when a client moves its last-delivered
-- ID, and what was trimmed unread could not be told any more. So the number is kept beside
-- the lengths of queues, with the ID that it belongs to.

-- move_to sets the last-delivered ID, and how many entries were read until there, if known.
local function move_to(stream, group, lengths, id, read)
  if not read then
    redis.call('xgroup', 'setid', stream, group, id)
    return
  end
  redis.call('xgroup', 'setid', stream, group, id, 'entriesread', read)
  redis.call('hset', lengths, 'read', id .. ' ' .. read)
end

-- read_until returns how many entries were read until an ID that was moved to last, else nil.
local function read_until(lengths, id)
  local at, read = string.match(redis.call('hget', lengths, 'read') or '', '^(%S+) (%d+)$')
  return at == id and tonumber(read) or nil
end

-- In a backlog a dispatcher reads ahead of the last-delivered ID, which stays behind the entries
-- that are unqueued. read_ahead returns where one has read to beyond an ID, under which token
-- of the dispatch lease ('-' for a foreign client), how many entries were read
-- until there, if known, how many of them are unqueued, and the number of the lease's last dispatch; else nil.
local function read_ahead(lengths, id)
  local token, last, read, unqueued, number = string.match(
    redis.call('hget', lengths, 'ahead') or '', '^(%S+) (%S+) (%d*) (%S+) ?(%d*)$')
  if last and after(last, id) then return last, token, tonumber(read), unqueued, number end
end

-- note_redispatched notes what was removed behind an ID, if all that is left follows it, while
-- entries up to where a former dispatcher has read to, ahead, are dispatched again: without a number until there, since
-- it may have finished some, and with their number beyond. read is how many were read until the ID, and
-- count how many until ahead, nil for unknown; noted of those beyond are noted by themselves. It returns how
-- many are read or noted then, nil for unknown.
local function note_redispatched(s, losses, id, read, ahead, count, noted)
  local first, removed = s['first-entry'] and s['first-entry'][1], s['entries-added'] - s['length']
  if removed == 0 or read and removed <= read or first and not after(first, id) then return read end
  local last, known = first or s['last-generated-id'], math.max(count or 0, read or 0) + noted
  local beyond = not first or after(first, ahead)
  if not count or not read or read < count then
    redis.call('rpush', losses, cjson.encode({
      cause = 'trimmed_unread', first = id, last = count and beyond and ahead or last}))
  end
  if count and beyond and removed > known then
    redis.call('rpush', losses, cjson.encode({
      cause = 'trimmed_unread', first = ahead, last = last, entries = removed - known}))
  end
  return removed
end

-- set_ahead records that, and how many entries are unqueued; '-' once its lease is another one's.
local function set_ahead(lengths, token, last, read, unqueued, number)
  redis.call('hset', lengths, 'ahead', token .. ' ' .. last .. ' ' .. (read or '') .. ' ' .. unqueued .. ' ' .. (number or 0))
end

-- note_unread notes what was removed behind an ID without having been read, if all that is
-- left follows it, or nothing; of unknown size if it is not known how many were read until there. It
-- returns how many are read or noted, nil for unknown. s is the stream's XINFO. Entries
-- that were removed before a group began at 0-0 were never ours to read. A dispatcher may have read some
-- of those that a snapshot notes, with lengths given: they are remembered for dispatch.lua,
-- which does not learn the IDs of those that it leaves unqueued: these are noted although they may be stored.
local function note_unread(s, losses, id, read, lengths)
  local first, newest = s['first-entry'] and s['first-entry'][1], s['last-generated-id']
  local removed = s['entries-added'] - s['length']
  -- Where nothing follows it, all that was added was read or removed.
  if first and not after(s['last-entry'][1], id) and (read or after(s['max-deleted-entry-id'], id)) then
    removed, first = s['entries-added'], nil
  end
  if first and not after(first, id) or read and removed <= read then return read end
  if read or removed > 0 and id ~= '0-0' and after(newest, id) then
    local last = first or newest
    if after(s['max-deleted-entry-id'], last) then last = s['max-deleted-entry-id'] end
    redis.call('rpush', losses, cjson.encode({
      cause = 'trimmed_unread', first = id, last = last, entries = read and removed - read}))
    if lengths then redis.call('hset', lengths, 'noted', id .. ' ' .. (first and '<' or '=') .. ' ' .. (first or newest)) end
  end
  return removed
end

-- noted_behind reports whether a snapshot has noted that an entry behind an ID is gone.
local function noted_behind(lengths, id, entry)
  local at, kind, bound = string.match(redis.call('hget', lengths, 'noted') or '', '^(%S+) (%S) (%S+)$')
  return at == id and (after(bound, entry) or kind == '=' and bound == entry)
end

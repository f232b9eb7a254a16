-- One script, one atomic step each. KEYS are the ledger's own; times come from Redis' clock (ms).
-- KEYS: 1 known  2 dispatched  3 running  4 owners  5 finalising
-- ARGV: 1 operation, 2… its arguments. A member is "<job>/<shard>".
local known, dispatched, running, owners, finalising = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local operation = ARGV[1]
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local reaped = 'ramole:reaped'
local workers = 'ramole:workers'

local function job_key(job, part)
  return 'ramole:job:' .. job .. ':' .. part
end

local function member(job, shard)
  return job .. '/' .. shard
end

local function is_done(job, shard)
  return redis.call('SISMEMBER', job_key(job, 'done'), shard) == 1
end

local function is_cancelled(job)
  return redis.call('EXISTS', 'ramole:cancelled:' .. job) == 1
end

-- nobody is to work on it any more; what is said of its progress outlives the job
local function is_over(job, shard)
  local progress = redis.call('HGET', job_key(job, 'progress'), shard) or ''
  return is_cancelled(job) or is_done(job, shard) or string.sub(progress, 1, 5) == 'done '
end

-- numbers from 0, five digits at least
local function is_shard(job, shard)
  local number = string.match(shard, '^%d+$') and tonumber(shard)
  local shards = tonumber(redis.call('HGET', job_key(job, 'job'), 'num_shards') or 0)
  return number and number < shards and string.format('%05d', number) == shard
end

-- The attempts of a shard that count, as its notes in the store: number -> token of the claim;
-- the token is empty where the number comes from a note
local function attempts_of(job, shard)
  local attempts = cjson.decode(redis.call('HGET', job_key(job, 'attempts'), shard) or '{}')
  return type(attempts) == 'table' and attempts or {}
end

local function keep_attempts(job, shard, attempts)
  redis.call('HSET', job_key(job, 'attempts'), shard, cjson.encode(attempts))
end

-- once, whoever works on the shard by now
local function give_back(job, shard, attempt, token)
  local attempts = attempts_of(job, shard)
  if attempts[attempt] ~= token and attempts[attempt] ~= '' then return 0 end
  attempts[attempt] = nil
  keep_attempts(job, shard, attempts)
  return 1
end

-- claim job shard token lease_ms max_attempts -> {verdict, attempt, how often it was begun}
if operation == 'claim' then
  local job, shard, token = ARGV[2], ARGV[3], ARGV[4]
  local lease, max_attempts = tonumber(ARGV[5]), tonumber(ARGV[6])
  local m = member(job, shard)
  local verdict = nil
  if is_cancelled(job) then verdict = 'cancelled'
  elseif redis.call('SISMEMBER', known, job) == 0 then verdict = 'unknown'
  elseif not is_shard(job, shard) then verdict = 'foreign'
  elseif is_done(job, shard) then verdict = 'done' end
  if verdict then
    redis.call('ZREM', dispatched, m)
    return { verdict, 0, 0 }
  end
  local attempts, count, last = attempts_of(job, shard), 0, 0
  for number, _ in pairs(attempts) do
    count, last = count + 1, math.max(last, tonumber(number))
  end
  if redis.call('HGET', owners, m) ~= token then -- it is when the client sends a claim twice
    local ends = redis.call('ZSCORE', running, m)
    if ends and tonumber(ends) > now then return { 'busy', 0, 0 } end
    count, last = count + 1, last + 1
    attempts[string.format('%d', last)] = token
    keep_attempts(job, shard, attempts)
    redis.call('ZREM', dispatched, m)
    redis.call('ZADD', running, now + lease, m)
    redis.call('HSET', owners, m, token)
  end
  return { count > max_attempts and 'exhausted' or 'run', last, count }
end

-- renew lease_ms worker about {member token}… -> which pairs, from 0, hold no lease any more; the
-- heartbeat. A shard without an owner (Redis was wiped) is taken back by the claim that holds it
if operation == 'renew' then
  local lost = {}
  redis.call('ZADD', workers, now / 1000, ARGV[3])
  redis.call('ZREMRANGEBYSCORE', workers, '-inf', now / 1000 - 3600)
  redis.call('SET', 'ramole:worker:' .. ARGV[3], ARGV[4], 'PX', 60000)
  for i = 5, #ARGV, 2 do
    local m, token = ARGV[i], ARGV[i + 1]
    local owner = redis.call('HGET', owners, m)
    local job, shard = string.match(m, '^(.*)/(.*)$')
    if not owner and not is_over(job, shard) then
      redis.call('HSET', owners, m, token)
      redis.call('ZREM', dispatched, m)
      owner = token
    end
    if owner == token then
      redis.call('ZADD', running, now + tonumber(ARGV[2]), m)
    else
      lost[#lost + 1] = (i - 5) / 2
    end
  end
  return lost
end

-- release job shard attempt token -> 1 when the attempt counted until now; the shard is queued
if operation == 'release' then
  local job, shard, token = ARGV[2], ARGV[3], ARGV[5]
  local m = member(job, shard)
  if redis.call('HGET', owners, m) == token then
    redis.call('HDEL', owners, m)
    redis.call('ZREM', running, m)
    redis.call('ZADD', dispatched, now, m)
  end
  return give_back(job, shard, ARGV[4], token)
end

-- pardon job shard attempt token -> 1 when the attempt counted until now; its lease ends
if operation == 'pardon' then
  local job, shard, token = ARGV[2], ARGV[3], ARGV[5]
  local m = member(job, shard)
  if redis.call('HGET', owners, m) == token then
    redis.call('HDEL', owners, m)
    redis.call('ZADD', running, 'XX', now, m)
  end
  return give_back(job, shard, ARGV[4], token)
end

-- report job shard text -> progress of a shard that runs
if operation == 'report' then
  local job, shard = ARGV[2], ARGV[3]
  if redis.call('SISMEMBER', known, job) == 1 and not is_done(job, shard) then
    redis.call('HSET', job_key(job, 'progress'), shard, ARGV[4])
  end
  return 1
end

-- finish job shard text -> 1 when every shard of the job is done
if operation == 'finish' then
  local job, shard = ARGV[2], ARGV[3]
  local m = member(job, shard)
  redis.call('ZREM', running, m)
  redis.call('ZREM', dispatched, m)
  redis.call('HDEL', owners, m)
  if redis.call('SISMEMBER', known, job) == 0 then return 0 end
  redis.call('HSET', job_key(job, 'progress'), shard, ARGV[4])
  redis.call('SADD', job_key(job, 'done'), shard)
  local shards = tonumber(redis.call('HGET', job_key(job, 'job'), 'num_shards'))
  if redis.call('SCARD', job_key(job, 'done')) < shards then return 0 end
  redis.call('SADD', finalising, job)
  return 1
end

-- next shards_per_worker alive_ms -> {job, shard, priority} or nil. In flight at most: low once,
-- normal twice, high three times the bound of all live workers together
if operation == 'next' then
  local alive = redis.call('ZCOUNT', workers, (now - tonumber(ARGV[3])) / 1000, '+inf')
  local bound = tonumber(ARGV[2]) * math.max(alive, 1)
  local in_flight = redis.call('ZCARD', dispatched) + redis.call('ZCARD', running)
  for rank, priority in ipairs({ 'high', 'normal', 'low' }) do
    if in_flight >= bound * (4 - rank) then return nil end
    local ring = 'ramole:ring:' .. priority
    local job = redis.call('LPOP', ring)
    while job do
      local shard = redis.call('LPOP', job_key(job, 'pending'))
      -- a message older than the ledger may have had it claimed already
      while shard and (is_done(job, shard) or redis.call('ZSCORE', running, member(job, shard))) do
        shard = redis.call('LPOP', job_key(job, 'pending'))
      end
      if shard then
        redis.call('RPUSH', ring, job)
        redis.call('ZADD', dispatched, now, member(job, shard))
        return { job, shard, priority }
      end
      job = redis.call('LPOP', ring)
    end
  end
  return nil
end

-- overdue grace_ms lease_ms high normal low -> members to send again: leases that ran out; and, of
-- each priority, as many as fewer messages are queued (the last three) than shards wait for theirs:
-- those that have waited longest, and longer than the grace (a queue keeps its order).
-- After a pause of all reapers (Redis was away) owners first get time for a beat
if operation == 'overdue' then
  local lease = tonumber(ARGV[3])
  local last = tonumber(redis.call('GET', reaped) or 0)
  redis.call('SET', reaped, now)
  local again = redis.call('ZRANGEBYSCORE', running, '-inf', now)
  if now - last > lease then
    for _, m in ipairs(again) do redis.call('ZADD', running, now + lease / 2, m) end
    again = {}
  end
  for _, m in ipairs(again) do
    redis.call('ZREM', running, m)
    redis.call('HDEL', owners, m)
  end
  local waiting = { high = {}, normal = {}, low = {} }
  for _, m in ipairs(redis.call('ZRANGE', dispatched, 0, -1)) do
    local priority = redis.call('HGET', job_key(string.match(m, '^(.*)/'), 'job'), 'priority')
    table.insert(waiting[priority] or waiting.normal, m)
  end
  for i, priority in ipairs({ 'high', 'normal', 'low' }) do
    for place = 1, #waiting[priority] - tonumber(ARGV[3 + i]) do
      local m = waiting[priority][place]
      if tonumber(redis.call('ZSCORE', dispatched, m)) <= now - tonumber(ARGV[2]) then
        again[#again + 1] = m
      end
    end
  end
  for _, m in ipairs(again) do redis.call('ZADD', dispatched, now, m) end
  return again
end

-- whole job -> 1 when every shard of the job is waiting, queued, running or done
if operation == 'whole' then
  local job, seen, count = ARGV[2], {}, 0
  local function add(shard)
    if not seen[shard] then
      seen[shard], count = true, count + 1
    end
  end
  for _, shard in ipairs(redis.call('LRANGE', job_key(job, 'pending'), 0, -1)) do add(shard) end
  for _, shard in ipairs(redis.call('SMEMBERS', job_key(job, 'done'))) do add(shard) end
  for _, set in ipairs({ dispatched, running }) do
    for _, m in ipairs(redis.call('ZRANGE', set, 0, -1)) do
      if string.sub(m, 1, #job + 1) == job .. '/' then add(string.sub(m, #job + 2)) end
    end
  end
  local shards = tonumber(redis.call('HGET', job_key(job, 'job'), 'num_shards') or -1)
  return count == shards and 1 or 0
end

-- forget job -> drops all that is known of it (ended, cancelled)
if operation == 'forget' then
  local job = ARGV[2]
  for _, set in ipairs({ dispatched, running }) do
    for _, m in ipairs(redis.call('ZRANGE', set, 0, -1)) do
      if string.sub(m, 1, #job + 1) == job .. '/' then
        redis.call('ZREM', set, m)
        redis.call('HDEL', owners, m)
      end
    end
  end
  for _, part in ipairs({ 'job', 'pending', 'done', 'attempts' }) do
    redis.call('DEL', job_key(job, part))
  end
  for _, priority in ipairs({ 'high', 'normal', 'low' }) do
    redis.call('LREM', 'ramole:ring:' .. priority, 0, job)
  end
  redis.call('SREM', known, job)
  redis.call('SREM', finalising, job)
  redis.call('EXPIRE', job_key(job, 'progress'), 3600)
  return 1
end

return redis.error_reply('unknown operation ' .. operation)

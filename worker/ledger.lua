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

-- claim job shard worker lease_ms max_attempts -> {verdict, attempt}
if operation == 'claim' then
  local job, shard, worker = ARGV[2], ARGV[3], ARGV[4]
  local lease, max_attempts = tonumber(ARGV[5]), tonumber(ARGV[6])
  local m = member(job, shard)
  local verdict = nil
  if redis.call('EXISTS', 'ramole:cancelled:' .. job) == 1 then verdict = 'cancelled'
  elseif redis.call('SISMEMBER', known, job) == 0 then verdict = 'unknown'
  elseif is_done(job, shard) then verdict = 'done' end
  if verdict then
    redis.call('ZREM', dispatched, m)
    return { verdict, 0 }
  end
  local ends = redis.call('ZSCORE', running, m)
  if ends and tonumber(ends) > now then return { 'busy', 0 } end
  local attempt = redis.call('HINCRBY', job_key(job, 'attempts'), shard, 1)
  redis.call('ZREM', dispatched, m)
  redis.call('ZADD', running, now + lease, m)
  redis.call('HSET', owners, m, worker .. ':' .. attempt)
  if attempt > max_attempts then return { 'exhausted', attempt } end
  return { 'run', attempt }
end

-- renew lease_ms worker about {member token}… -> members whose lease is no longer ours; the heartbeat
if operation == 'renew' then
  local lost = {}
  redis.call('ZADD', workers, now / 1000, ARGV[3])
  redis.call('ZREMRANGEBYSCORE', workers, '-inf', now / 1000 - 3600)
  redis.call('SET', 'ramole:worker:' .. ARGV[3], ARGV[4], 'PX', 60000)
  for i = 5, #ARGV, 2 do
    if redis.call('HGET', owners, ARGV[i]) == ARGV[i + 1] then
      redis.call('ZADD', running, 'XX', now + tonumber(ARGV[2]), ARGV[i])
    else
      lost[#lost + 1] = ARGV[i]
    end
  end
  return lost
end

-- release job shard token -> 1 when the attempt was given back and the shard waits again
if operation == 'release' then
  local m = member(ARGV[2], ARGV[3])
  if redis.call('HGET', owners, m) ~= ARGV[4] then return 0 end
  redis.call('HINCRBY', job_key(ARGV[2], 'attempts'), ARGV[3], -1)
  redis.call('HDEL', owners, m)
  redis.call('ZREM', running, m)
  redis.call('ZADD', dispatched, now, m)
  return 1
end

-- pardon job shard token -> gives the attempt of a dead worker back; its lease ends now
if operation == 'pardon' then
  local m = member(ARGV[2], ARGV[3])
  if redis.call('HGET', owners, m) ~= ARGV[4] then return 0 end
  redis.call('HINCRBY', job_key(ARGV[2], 'attempts'), ARGV[3], -1)
  redis.call('HDEL', owners, m)
  redis.call('ZADD', running, 'XX', now, m)
  return 1
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

-- overdue queued grace_ms lease_ms -> members to send again: leases that ran out; and, when fewer
-- messages are queued than shards wait for theirs, those that have waited longer than the grace.
-- After a pause of all reapers (Redis was away) owners first get time for a beat
if operation == 'overdue' then
  local lease = tonumber(ARGV[4])
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
  if redis.call('ZCARD', dispatched) > tonumber(ARGV[2]) then
    for _, m in ipairs(redis.call('ZRANGEBYSCORE', dispatched, '-inf', now - tonumber(ARGV[3]))) do
      again[#again + 1] = m
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
  redis.call('SREM', known, job)
  redis.call('SREM', finalising, job)
  redis.call('EXPIRE', job_key(job, 'progress'), 3600)
  return 1
end

return redis.error_reply('unknown operation ' .. operation)

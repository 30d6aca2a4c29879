-- One step of an account's pool. All that happens to tokens, but for being
-- taken by BLMOVE free -> taken, happens here; Limiter's comment has the rule.
--
-- KEYS  pool    hash: what is known of the account
--       free    list: tokens for whoever comes first
--       taken   list: tokens out of free, after a '-' that keeps the list, and
--               so its time to live, when there is none
--       parked  list: tokens that wait for the end of a pause
-- ARGV  settings, limit, fresh (a name that never was one), ttl in ms,
--       silent (the watch that did not change for long enough, or ''),
--       holding (requests of the caller that may yet arrive),
--       pause in ms (the server told the account to pause), over (the number
--       of the pause that has ended by the caller's clock), observe (0 or 1),
--       then pairs: how, token
-- Returns {watch, state, ms left of the pause, its number, settings in force,
--       {token, ms until its turn, ...} now in the caller's care,
--       {token, ...} taken, if observe is 1}
--
-- A token is pool.number.generation. It gets its next generation whenever it
-- leaves taken, so that a call that comes late or twice finds nothing. An
-- error in the middle can lose tokens, never make one.
local pool, free, taken, parked = unpack(KEYS)
local settings, limit, fresh, ttl, silent = ARGV[1], tonumber(ARGV[2]), ARGV[3], ARGV[4], ARGV[5]
local holding, pause, over, observe = tonumber(ARGV[6]), tonumber(ARGV[7]), ARGV[8], ARGV[9]

local f = {}
local fields = redis.call('HGETALL', pool)
for i = 1, #fields, 2 do f[fields[i]] = fields[i + 1] end
local function num(name) return tonumber(f[name] or 0) end
local function set(name, v)
  if type(v) == 'number' then v = string.format('%.3f', v) end
  f[name] = v
  redis.call('HSET', pool, name, v)
end

local time = redis.call('TIME') -- for the pause and the pace alone: a step of it cannot exceed the limit
local now = time[1] * 1000 + time[2] / 1000
local info = redis.pcall('INFO', 'server')
local server = type(info) == 'string' and string.match(info, 'run_id:(%w+)') or ''
local count = redis.call('LLEN', free) + redis.call('LLEN', taken) + redis.call('LLEN', parked)

-- Others keep the account at other settings. They are gone once the pool has
-- not been used for long enough.
if f.id and f.settings ~= settings then
  local watch = f.id .. ':' .. (f.beat or '')
  if silent ~= watch then return {watch, 'foreign', 0, '', f.settings, {}, {}} end
  f.id = nil
end

redis.call('HINCRBY', pool, 'beat', 1) -- fails first, out of memory

-- Made anew, but without tokens until there was silence.
if not f.id or f.server ~= server or (f.ready == '1' and count ~= limit + 1) then
  redis.call('DEL', free, taken, parked)
  set('id', fresh)
  set('ready', '0')
  set('server', server)
  set('settings', settings)
  if f.phase == 'probe' then set('phase', 'paused') end
end
if f.ready ~= '1' then
  if holding > 0 then
    set('id', fresh) -- the silence begins again
  elseif silent == f.id then
    for i = 1, limit do
      redis.call('RPUSH', f.phase == 'paused' and parked or free, f.id .. '.' .. i .. '.0')
    end
    redis.call('RPUSH', taken, '-')
    set('ready', '1')
  end
end

-- The pace, in tokens per second, as the core's after a throttle: RFC 9438.
local scale = tonumber(string.match(settings, '^(%d+)/')) / tonumber(string.match(settings, '/(%d+)/')) * 1000 / 15
local function pace()
  if num('cut') == 0 or now - num('throttled') >= 3600000 then return nil end
  local c = (num('from') - num('to')) / 140 ^ 3
  local x = math.max(now - num('until'), 0) / 1000 - 140
  if x > 0 then c = math.max(c, 1e-6 * scale) end
  return math.min(c * x ^ 3 + num('from'), 14 * scale)
end
local function cut()
  local factor = num('cut') > 0 and now - num('cut') < 30000 and 0.5 or 0.8
  local from = math.min(pace() or math.huge, 14 * scale)
  set('from', from)
  set('to', math.max(factor * from, 0.5 * scale))
  set('cut', now)
end

-- give lets a token, which is in no list, go to free at its turn.
local care = {}
local function give(token)
  local rate = pace()
  local at = now
  if rate then
    local gap = 1000 / rate
    at = num('next')
    if at < now or at > now + (limit + 1) * gap then at = now end
    set('next', at + gap)
  end
  if at - now < 1 then
    redis.call('RPUSH', free, token)
  else
    redis.call('RPUSH', taken, token)
    table.insert(care, token)
    table.insert(care, math.ceil(at - now))
  end
end

if pause > 0 then
  set('throttled', now)
  if f.phase == 'paused' then
    set('wait', math.max(num('wait'), pause))
    set('until', math.max(num('until'), now + pause))
  else
    if f.phase == 'probe' then
      pause = math.max(pause, math.min(2 * num('wait'), 60000))
    else
      cut()
    end
    set('phase', 'paused')
    set('wait', pause)
    set('until', now + pause)
    while redis.call('LMOVE', free, parked, 'LEFT', 'RIGHT') do end
  end
  set('number', string.format('%d', num('number') + 1))
end

for i = 10, #ARGV, 2 do
  local how, token = ARGV[i], ARGV[i + 1]
  if redis.call('LREM', taken, 1, token) == 1 then
    local base, generation = string.match(token, '^(.*)%.(%d+)$')
    local new = base .. '.' .. string.format('%d', generation + 1)
    local probe = f.phase == 'probe' and f.probe == token
    if how == 'renew' then
      redis.call('RPUSH', taken, new)
      if probe then set('probe', new) end
    elseif f.phase == 'paused' then
      redis.call('RPUSH', parked, new)
    elseif f.phase == 'probe' and (f.probe == '' or probe and how == 'unused') then
      redis.call('RPUSH', free, new)
      set('probe', new)
    elseif f.phase == 'probe' and not probe then
      redis.call('RPUSH', parked, new)
    elseif probe then -- it was sent and W is over: the pause is, too
      set('phase', 'open')
      give(new)
      while true do
        local t = redis.call('LPOP', parked)
        if not t then break end
        give(t)
      end
    elseif how == 'sent' then
      give(new)
    else -- its turn has come, or was not used
      redis.call('RPUSH', free, new)
    end
  end
end

if f.phase == 'paused' and f.ready == '1' and (now >= num('until') or over == f.number) then
  set('phase', 'probe')
  set('probe', redis.call('LMOVE', parked, free, 'LEFT', 'RIGHT') or '')
end

for _, key in ipairs(KEYS) do redis.call('PEXPIRE', key, ttl) end
local left = 0
if f.phase == 'paused' and f.ready == '1' then left = math.max(1, math.ceil(math.min(num('until') - now, num('wait')))) end
local seen = {}
if observe == '1' then seen = redis.call('LRANGE', taken, 1, -1) end
return {f.id, f.ready == '1' and 'ready' or 'silence', left, f.number or '', settings, care, seen}

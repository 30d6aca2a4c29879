-- One step of an account's pool. Only a step and BLMOVE free -> taken move
-- tokens; pool.go has the rule.
--
-- KEYS  pool    hash: what is known of the account
--       free    list: tokens for whoever comes first
--       taken   list: a '-', so that the list is always there, and then the
--               tokens out of free, or waiting for their turn
--       parked  list: tokens that wait for the end of a pause
--       seen    hash: when a token in taken counts as lost, by the pool's clock
-- ARGV  what to do, as JSON: Limiter.call has the fields
--
-- A token is pool.number.generation. One that was made anew for its holder has its
-- old name instead of the number. An error in the middle can lose tokens, never
-- add any.
local pool, free, taken, parked, seen = unpack(KEYS)
local o = cjson.decode(ARGV[1])

local server = o.server
if server == '' then
  local info = redis.pcall('INFO', 'server')
  server = type(info) == 'string' and string.match(info, 'run_id:(%w+)')
  if not server then return cjson.encode({state = 'no run_id'}) end
end

local f, fields = {}, redis.call('HGETALL', pool)
for i = 1, #fields, 2 do f[fields[i]] = fields[i + 1] end
local function num(name) return tonumber(f[name] or 0) end
local function set(name, v)
  if type(v) == 'number' then v = string.format('%.3f', v) end
  f[name] = v
  redis.call('HSET', pool, name, v)
end

-- The pool's clock, by which silences end. Where Redis's jumped forward since the
-- caller's last step, only what the caller reckons counts.
local time = redis.call('TIME')
local now = time[1] * 1000 + time[2] / 1000
local least = math.min(o.silence, f.silence and num('silence') or o.silence)
local passed = math.max(0, math.min(now, o.clock > 0 and o.clock + 100 or now) - num('now'))
local most = least - math.min(least / 3, o.tick) - 400
local clock = num('clock') + math.min(passed, most)
set('now', now) -- fails first, out of memory
set('clock', clock)
local silence = math.max(o.silence, num('silence'))

-- Other processes use another window, until they are silent.
if f.id and num('window') ~= o.window then
  local wait = num('used') + silence - clock
  if wait > 0 then return cjson.encode({state = 'foreign', window = num('window'), now = now, wait = wait}) end
  f.id, o.start = nil, 0
end
set('used', clock)
if f.id then set('silence', silence) end

-- Start the pool anew. Its tokens are made after a silence.
local moved = f.server ~= server and f.server ~= 'any' and server ~= 'any'
if not f.id or moved or redis.call('LLEN', free) + redis.call('LLEN', taken) + redis.call('LLEN', parked) ~= num('made') + 1 then
  redis.call('DEL', free, taken, parked, seen)
  redis.call('RPUSH', taken, '-')
  if f.phase == 'probe' then set('phase', 'paused') end
  local at = clock + (f.id and silence or o.start)
  for name, v in pairs({id = o.fresh, server = server, window = o.window, silence = o.silence, limit = o.limit, low = clock,
    made = 0, names = 0, ready = '0', at = at, look = 0, lost = clock + silence}) do set(name, v) end
end

-- The lowest limit of the last silence is in force.
if o.limit <= num('limit') or clock - num('low') >= silence then
  set('limit', o.limit)
  set('low', clock)
end
local limit = num('limit')

if o.known == (f.number or '') then set('gap', o.gap) end
if o.pause > 0 then
  set('throttled', now)
  if f.phase == 'paused' then
    set('wait', math.max(num('wait'), o.pause))
    set('until', math.max(num('until'), now + o.pause))
  else
    if f.phase == 'probe' then
      o.pause = math.max(o.pause, math.min(2 * num('wait'), 60000))
    else
      set('from', o.from)
      set('to', o.to)
      set('cut', now)
      set('gap', 1000 / num('to'))
    end
    set('phase', 'paused')
    set('wait', o.pause)
    set('until', now + o.pause)
    while redis.call('LMOVE', free, parked, 'LEFT', 'RIGHT') do end
  end
  set('number', string.format('%d', num('number') + 1))
end
local gap = num('gap')

local delays, names = {}, {} -- of tokens that wait for their turn; of tokens made anew

-- place puts a token that is in no list into free, at its turn, or into parked.
local function place(token, how)
  if f.ready ~= '1' or num('made') > limit then
    set('made', num('made') - 1)
  elseif f.phase == 'paused' or f.phase == 'probe' then
    redis.call('RPUSH', parked, token)
  else
    local at = math.max(now, num('next'))
    if at > now + (limit + 1) * gap then at = now end
    if how == 'sent' then set('next', at + gap) end
    if how ~= 'sent' or at - now < 1 then
      redis.call('RPUSH', free, token)
    else
      redis.call('RPUSH', taken, token)
      delays[token] = math.ceil(at - now)
    end
  end
end

-- This overtakes nobody: while a token is free, no BLMOVE waits.
local token = f.ready == '1' and o.want and num('made') <= limit and o.pause == 0 and redis.call('LMOVE', free, taken, 'LEFT', 'RIGHT') or nil
if token then redis.call('HSET', seen, token, clock + silence) end

-- Find the lost tokens. A token that no step saw in taken before was asked for
-- within o.ask of the previous step.
if clock >= math.min(num('look'), num('lost')) then
  local lost, entries, soonest = {}, redis.call('HGETALL', seen), clock + silence
  for i = 1, #entries, 2 do lost[entries[i]] = tonumber(entries[i + 1]) end
  for _, token in ipairs(redis.call('LRANGE', taken, 1, -1)) do
    if not lost[token] then
      lost[token] = clock + math.min(silence, math.max(silence - most, silence + o.ask - passed))
      redis.call('HSET', seen, token, lost[token])
    end
    if clock >= lost[token] then
      table.insert(o.changes, {'sent', token})
    else
      soonest = math.min(soonest, lost[token])
    end
  end
  set('look', clock + math.min(limit, 500)) -- a look takes longer if there are many
  set('lost', soonest)
end

for i, change in ipairs(o.changes) do
  local how, token = unpack(change)
  local there = redis.call('LREM', taken, 1, token) == 1
  if not there then -- perhaps it was made anew, and its holder did not get the reply
    token = f.id .. '.' .. token .. '.0'
    there = redis.call('LREM', taken, 1, token) == 1
    if how == 'renew' and not there and f.ready ~= '1' and num('made') < limit then
      set('made', num('made') + 1)
      there = true
    end
    if there then names[tostring(i - 1)] = token end
  end
  if there and how == 'renew' then
    redis.call('RPUSH', taken, token)
    redis.call('HSET', seen, token, clock + silence)
  elseif there then
    redis.call('HDEL', seen, token)
    local base, generation = string.match(token, '^(.*)%.(%d+)$')
    local new = base .. '.' .. string.format('%d', generation + 1)
    local probe = f.phase == 'probe' and f.probe == token
    if f.phase == 'probe' and f.ready == '1' and (f.probe == '' or probe and how == 'unused') then
      redis.call('RPUSH', free, new)
      set('probe', new)
    else
      if probe then set('phase', 'open') end -- the probe arrived W ago, or is lost
      place(new, how)
    end
    while probe and f.phase == 'open' do
      local t = redis.call('LPOP', parked)
      if not t then break end
      place(t, 'sent')
    end
  end
end

if clock >= num('at') then set('ready', '1') end
while f.ready == '1' and num('made') < limit do
  set('made', num('made') + 1)
  set('names', num('names') + 1)
  place(f.id .. '.' .. string.format('%d', num('names')) .. '.0', 'sent')
end
while num('made') > limit and (f.phase ~= 'probe' and redis.call('LPOP', free) or redis.call('LPOP', parked)) do
  set('made', num('made') - 1)
end
if f.phase == 'paused' and f.ready == '1' and (now >= num('until') or o.over == f.number) then
  set('phase', 'probe')
  set('probe', redis.call('LMOVE', parked, free, 'LEFT', 'RIGHT') or '')
end

for _, key in ipairs(KEYS) do redis.call('PEXPIRE', key, o.ttl) end
local left = f.phase == 'paused' and f.ready == '1' and math.max(1, math.min(num('until') - now, num('wait'))) or 0
return cjson.encode({
  id = f.id, state = f.ready == '1' and 'ready' or 'silent', phase = f.phase or '', number = f.number or '', limit = limit,
  token = token, left = left, wait = num(f.ready == '1' and 'lost' or 'at') - clock, now = now,
  delays = next(delays) and delays or nil, names = next(names) and names or nil,
  throttled = num('throttled'), resumed = num('until'), cut = num('cut'), from = num('from'), to = num('to'),
})

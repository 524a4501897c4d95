"""The steps of `shared.stream` that must be one: Lua, run by Redis between two other commands.

Keys and arguments are in the order in which `RunStream` gives them.
"""

APPEND = """
if redis.call('HEXISTS', KEYS[2], ARGV[1]) == 1 then return 0 end
if redis.call('GET', KEYS[4]) == ARGV[3] then return 0 end
if redis.call('SADD', KEYS[3], ARGV[1]) == 0 then return 0 end
redis.call('XADD', KEYS[1], '*', 'group_id', ARGV[1], 'group', ARGV[2])
return 1
"""

MARK_FED = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
if redis.call('HEXISTS', KEYS[2], ARGV[2]) == 0 then redis.call('SADD', KEYS[3], ARGV[2]) end
local cursor = tonumber(redis.call('GET', KEYS[4]) or '0')
redis.call('SET', KEYS[4], math.max(cursor, tonumber(ARGV[3])))
return 1
"""

REGISTER_FEEDER = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
if redis.call('GET', KEYS[2]) == ARGV[2] then return 0 end
redis.call('SET', KEYS[2], ARGV[2])
return 1
"""

RAISE_CURSOR = """
local cursor = tonumber(redis.call('GET', KEYS[1]) or '0')
redis.call('SET', KEYS[1], math.max(cursor, tonumber(ARGV[1])))
"""

FINISH = """
if redis.call('EXISTS', KEYS[5]) == 0 then return -1 end
local left = redis.call('SMEMBERS', KEYS[1])
for _, group_id in ipairs(left) do redis.call('HSETNX', KEYS[2], group_id, ARGV[1]) end
redis.call('DEL', KEYS[1], KEYS[3], KEYS[4])
redis.call('SET', KEYS[5], ARGV[2])
return #left
"""

GIVE_UP = """
if redis.call('HEXISTS', KEYS[2], ARGV[1]) == 1 then return 0 end
if redis.call('SISMEMBER', KEYS[3], ARGV[1]) == 1 then return 0 end
redis.call('XADD', KEYS[1], '*', 'group_id', ARGV[1], 'reason', ARGV[2])
redis.call('HSET', KEYS[2], ARGV[1], ARGV[3])
redis.call('SREM', KEYS[4], ARGV[1])
return 1
"""

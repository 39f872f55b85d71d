"""How a key's limits are counted: once as a script that Redis runs, once in memory. Both keep the same few numbers for each key.

What is used is a level that sinks evenly, by the whole limit in a minute. Missing numbers are a level of nothing, so losing them opens
the door and never shuts it. The package `limits` knows neither tokens that are settled afterwards nor places that are given back.
"""

import threading
import time
from dataclasses import dataclass, field
from typing import Any

LEASE = 60
"""Seconds for which a place is held without being renewed."""
MOST = 10_000
"""Keys of which one process remembers anything that has sunk to nothing."""

SCRIPT = """
local doing, per_requests, per_tokens, at_once = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local expected, name, lease = tonumber(ARGV[5]), ARGV[6], tonumber(ARGV[7])
local clock = redis.call('TIME')
local now = tonumber(clock[1]) + tonumber(clock[2]) / 1000000

for place, kind in ipairs({'hash', 'hash', 'zset'}) do
  local is = redis.call('TYPE', KEYS[place]).ok
  if is ~= kind and is ~= 'none' then redis.call('DEL', KEYS[place]) end
end

local function level(key, limit)
  if limit == 0 then return 0 end
  local told = redis.call('HMGET', key, 'used', 'at')
  local used, at = tonumber(told[1] or ''), tonumber(told[2] or '')
  if not used or not at or used ~= used or at ~= at or used >= 1e15 or at > now then return 0 end
  return math.max(0, used - (now - at) * limit / 60)
end

local function store(key, limit, used)
  if limit == 0 then return end
  if used <= 0 then redis.call('DEL', key) return end
  redis.call('HSET', key, 'used', string.format('%.6f', used), 'at', string.format('%.6f', now))
  redis.call('EXPIRE', key, math.min(math.ceil(used * 60 / limit) + 1, 604800))
end

local function held()
  if at_once == 0 then return 0 end
  redis.call('ZREMRANGEBYSCORE', KEYS[3], '-inf', string.format('%.6f', now))
  redis.call('ZREMRANGEBYSCORE', KEYS[3], string.format('(%.6f', now + lease + 1), '+inf')
  return redis.call('ZCARD', KEYS[3])
end

if doing == 'stay' then
  redis.call('ZADD', KEYS[3], 'XX', string.format('%.6f', now + lease), name)  -- never one that was left meanwhile
  redis.call('EXPIRE', KEYS[3], lease + 1)
  return {}
end

local requests, tokens = level(KEYS[1], per_requests), level(KEYS[2], per_tokens)
if doing == 'leave' then
  store(KEYS[2], per_tokens, tokens + expected)
  redis.call('ZREM', KEYS[3], name)
  return {}
end

local refused, wait = '', 0
if at_once > 0 and held() >= at_once then refused = 'at_once' end
if per_tokens > 0 and tokens + expected > per_tokens + 0.000001 then
  refused, wait = 'tokens', (tokens + expected - per_tokens) * 60 / per_tokens
end
if per_requests > 0 and requests + 1 > per_requests + 0.000001 then
  local sinks = (requests + 1 - per_requests) * 60 / per_requests
  if sinks >= wait then refused, wait = 'requests', sinks end
end
if refused == '' then
  requests, tokens = requests + 1, tokens + expected
  store(KEYS[1], per_requests, requests)
  store(KEYS[2], per_tokens, tokens)
  if at_once > 0 then
    redis.call('ZADD', KEYS[3], string.format('%.6f', now + lease), name)
    redis.call('EXPIRE', KEYS[3], lease + 1)
  end
end
return {refused, string.format('%.6f', wait), string.format('%.6f', requests), string.format('%.6f', tokens)}
"""


@dataclass(frozen=True)
class Asked:
    """What one request wants of its key's limits; a limit of 0 is none."""

    key: str
    requests: int
    tokens: int
    at_once: int
    expected: int
    """Tokens."""


@dataclass(frozen=True)
class Found:
    refused: str
    """Which limit stands in the way: requests, tokens or at_once; empty where none does."""
    wait: float
    """Seconds until it would not."""
    requests: float
    """Used, with this one where it was let in."""
    tokens: float

    @classmethod
    def read(cls, told: list[Any]) -> "Found":
        refused, *numbers = [piece.decode() for piece in told]
        wait, requests, tokens = map(float, numbers)
        return cls(refused, wait, requests, tokens)


@dataclass
class Level:
    used: float = 0.0
    at: float = 0.0

    def now(self, limit: int, now: float) -> float:
        return max(0.0, self.used - (now - self.at) * limit / 60) if limit else 0.0


@dataclass
class Levels:
    requests: Level = field(default_factory=Level)
    tokens: Level = field(default_factory=Level)
    places: dict[str, float] = field(default_factory=dict)
    """Until when each is held."""


class Counter:
    """The same for one process alone."""

    def __init__(self) -> None:
        self.keys: dict[str, Levels] = {}
        self.lock = threading.Lock()

    def take(self, asked: Asked, name: str) -> Found:
        now = time.monotonic()
        with self.lock:
            self._tidy(now)
            levels = self.keys.setdefault(asked.key, Levels())
            requests, tokens = levels.requests.now(asked.requests, now), levels.tokens.now(asked.tokens, now)
            levels.places = {held: until for held, until in levels.places.items() if until > now}
            refused, wait = "", 0.0
            if asked.at_once and len(levels.places) >= asked.at_once:
                refused = "at_once"
            if asked.tokens and tokens + asked.expected > asked.tokens + 1e-6:
                refused, wait = "tokens", (tokens + asked.expected - asked.tokens) * 60 / asked.tokens
            if asked.requests and requests + 1 > asked.requests + 1e-6:
                sinks = (requests + 1 - asked.requests) * 60 / asked.requests
                refused, wait = ("requests", sinks) if sinks >= wait else (refused, wait)
            if not refused:
                requests, tokens = requests + 1, tokens + asked.expected
                levels.requests, levels.tokens = Level(requests, now), Level(tokens, now)
                if asked.at_once:
                    levels.places[name] = now + LEASE
            return Found(refused, wait, requests, tokens)

    def leave(self, asked: Asked, name: str, used: int) -> None:
        now = time.monotonic()
        with self.lock:
            levels = self.keys.get(asked.key)
            if levels is None:
                return
            levels.places.pop(name, None)
            levels.tokens = Level(max(0.0, levels.tokens.now(asked.tokens, now) + used - asked.expected), now)

    def stay(self, asked: Asked, name: str) -> None:
        with self.lock:
            levels = self.keys.get(asked.key)
            if levels is not None and name in levels.places:
                levels.places[name] = time.monotonic() + LEASE

    def _tidy(self, now: float) -> None:
        """Forgets keys of which nothing is left to count; a minute is the longest that a level within its limit takes."""
        if len(self.keys) < MOST:
            return
        self.keys = {
            key: levels
            for key, levels in self.keys.items()
            if now - max(levels.requests.at, levels.tokens.at) < LEASE or any(until > now for until in levels.places.values())
        }

"""Keeps each key within its limits: requests and tokens a minute, and answers at once, counted in Redis for all processes together.

What is used up comes back evenly over a minute. Nothing is lost with a Redis that is flushed but the current minute; while it is away
each process counts for itself. No database is asked, so any thread may call this.
"""

import logging
import math
import threading
import time
import uuid
from dataclasses import dataclass, field
from typing import Any

import redis
from django.conf import settings

from studio.serving.counting import LEASE, SCRIPT, Asked, Counter, Found
from studio.workspaces.models import ApiKey

log = logging.getLogger("studio.limits")

MINUTE = 60.0
AWAY = 5.0
"""Seconds for which a Redis that did not answer is not asked again."""
PATIENCE = 1.0
"""Seconds that a request waits for Redis."""
WHILE_FULL = 1.0
"""Seconds after which to try again where too many answers are under way: nobody knows when one ends."""


class Limited(Exception):
    """A key has used up what it may; `retry_after` is in seconds, and `headers` say it as OpenAI's do."""

    def __init__(self, message: str, *, retry_after: float, headers: dict[str, str]):
        super().__init__(message)
        self.message = message
        self.retry_after = retry_after
        self.headers = headers | {"retry-after": str(max(1, math.ceil(retry_after))), "retry-after-ms": str(math.ceil(retry_after * 1000))}


@dataclass
class Place:
    """An answer under way. Whoever has it leaves it once, however the answer ends; one that is forgotten is free after `LEASE` seconds."""

    headers: dict[str, str] = field(default_factory=dict)
    """x-ratelimit-…, for the answer."""
    name: str = ""
    asked: Asked | None = None
    counter: "InRedis | Counter | None" = None
    """Where it was counted; None where nothing is limited."""

    def leave(self, tokens_used: int) -> None:
        """Gives the place back, and settles what was expected by what was used. Later calls change nothing."""
        counter, self.counter = self.counter, None
        if counter is None or self.asked is None:
            return
        KEEPER.forget(self)
        try:
            counter.leave(self.asked, self.name, tokens_used)
        except redis.RedisError as error:
            AWAY_SINCE.note(error)  # its lease ends by itself, and its tokens count as expected


def admit(key: ApiKey | None, *, expected_tokens: int) -> Place:
    """A place for one answer of as many tokens, read and written, as are expected. Raises Limited. Without a key nothing is limited.

    A single request that expects more than a minute's worth is let in once nothing else is used, and what it used is then waited for.
    """
    if key is None or not (key.requests_per_minute or key.tokens_per_minute or key.at_once):
        return Place()
    tokens = min(max(0, expected_tokens), key.tokens_per_minute or 0)
    asked = Asked(str(key.pk), key.requests_per_minute or 0, key.tokens_per_minute or 0, key.at_once or 0, tokens)
    name = uuid.uuid4().hex
    counter, found = count(asked, name)
    headers = headers_of(asked, found)
    if found.refused:
        raise Limited(sentence(asked, found), retry_after=found.wait if found.refused != "at_once" else WHILE_FULL, headers=headers)
    place = Place(headers, name, asked, counter)
    if asked.at_once:
        KEEPER.keep(place)
    return place


def count(asked: Asked, name: str) -> "tuple[InRedis | Counter, Found]":
    if not AWAY_SINCE.is_recent():
        shared = InRedis(settings.REDIS_URL)
        try:
            found = shared.take(asked, name)
        except redis.RedisError as error:
            AWAY_SINCE.note(error)
        else:
            AWAY_SINCE.is_back()
            return shared, found
    return HERE, HERE.take(asked, name)


@dataclass(frozen=True)
class InRedis:
    """Counts for all processes that share a Redis: one script, so that nothing comes between the look and the taking."""

    url: str

    @property
    def client(self) -> Any:
        made = CLIENTS.get(self.url)
        if made is None:
            timeouts = {"socket_timeout": PATIENCE, "socket_connect_timeout": PATIENCE}
            made = CLIENTS.setdefault(self.url, redis.Redis.from_url(self.url, **timeouts))
        return made

    def names(self, asked: Asked) -> list[str]:
        # In braces: a cluster keeps the three together, as a script needs it.
        return [f"limits:{{{asked.key}}}:{what}" for what in ("requests", "tokens", "places")]

    def take(self, asked: Asked, name: str) -> Found:
        told = self.client.eval(
            SCRIPT, 3, *self.names(asked), "take", asked.requests, asked.tokens, asked.at_once, asked.expected, name, LEASE
        )
        return Found.read(told)

    def leave(self, asked: Asked, name: str, used: int) -> None:
        self.client.eval(
            SCRIPT, 3, *self.names(asked), "leave", asked.requests, asked.tokens, asked.at_once, used - asked.expected, name, LEASE
        )

    def stay(self, asked: Asked, name: str) -> None:
        self.client.eval(SCRIPT, 3, *self.names(asked), "stay", asked.requests, asked.tokens, asked.at_once, 0, name, LEASE)


CLIENTS: dict[str, Any] = {}
HERE = Counter()
"""What this process counts while Redis is away."""


class Away:
    """Whether Redis is away. It is said once, not for each request."""

    def __init__(self) -> None:
        self.until = 0.0
        self.said = False
        self.lock = threading.Lock()

    def is_recent(self) -> bool:
        return time.monotonic() < self.until

    def note(self, error: Exception) -> None:
        self.until = time.monotonic() + AWAY
        with self.lock:
            is_news, self.said = not self.said, True
        if is_news:
            log.warning("Redis does not count the limits of keys (%s). Until it does, each process counts for itself.", error)

    def is_back(self) -> None:
        with self.lock:
            is_news, self.said = self.said, False
        if is_news:
            log.warning("Redis counts the limits of keys again.")


AWAY_SINCE = Away()


class Keeper:
    """Renews the leases of the answers that this process has under way: a process that is killed frees its places, a slow one does not."""

    def __init__(self, away: Away) -> None:
        self.away = away
        self.places: dict[str, Place] = {}
        self.lock = threading.Lock()
        self.thread: threading.Thread | None = None

    def keep(self, place: Place) -> None:
        with self.lock:
            self.places[place.name] = place
            if self.thread is None or not self.thread.is_alive():
                self.thread = threading.Thread(target=self.renew, name="limits", daemon=True)
                self.thread.start()

    def forget(self, place: Place) -> None:
        with self.lock:
            self.places.pop(place.name, None)

    def renew(self) -> None:
        while True:
            time.sleep(LEASE / 3)
            with self.lock:
                held = list(self.places.values())
                if not held:
                    self.thread = None
                    return
            for place in held:
                counter = place.counter
                if counter is None or place.asked is None:
                    continue
                try:
                    counter.stay(place.asked, place.name)
                except redis.RedisError as error:
                    self.away.note(error)
                    break


KEEPER = Keeper(AWAY_SINCE)


def sentence(asked: Asked, found: Found) -> str:
    match found.refused:
        case "requests":
            return f"This key may ask {asked.requests:,} times a minute. Try again in {lasting(found.wait)}."
        case "tokens":
            return f"This key may use {asked.tokens:,} tokens a minute. Try again in {lasting(found.wait)}."
    return f"This key may wait for {asked.at_once:,} answers at once. Try again once one of them has come."


def headers_of(asked: Asked, found: Found) -> dict[str, str]:
    told: dict[str, str] = {}
    for name, limit, used in (("requests", asked.requests, found.requests), ("tokens", asked.tokens, found.tokens)):
        if limit:
            told |= {
                f"x-ratelimit-limit-{name}": str(limit),
                f"x-ratelimit-remaining-{name}": str(max(0, math.floor(limit - used + 1e-6))),
                f"x-ratelimit-reset-{name}": lasting(used * MINUTE / limit),
            }
    return told


def lasting(seconds: float) -> str:
    """As OpenAI writes it: `20ms`, `1.5s`, `6m0s`."""
    if seconds < 1:
        return f"{math.ceil(seconds * 1000)}ms"
    if (hundredths := math.ceil(seconds * 100 - 1e-6)) < MINUTE * 100:
        return f"{hundredths / 100:g}s"
    whole = math.ceil(seconds)
    hours, minutes = divmod(whole // 60, 60)
    return f"{f'{hours}h' if hours else ''}{minutes}m{whole % 60}s"

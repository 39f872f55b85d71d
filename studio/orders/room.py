"""Memory for an order where it is short: models that serving holds are asked to leave, and what came of it is told.

The process that answers is asked on its socket; where it runs on another machine there is none here, and nothing to ask for.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from django.conf import settings

from studio.orders.outofmemory import free_memory
from studio.worker.gpumemory import gpu_memory, gpus_in_use
from studio.workspaces.templatetags.studio import filesize

LONGEST = 60.0
"""Seconds that an order waits for answers to end; what serves is there for people who wait, too."""
EVERY = 1.0
TIMEOUT = httpx.Timeout(30, connect=2)
LEFT = "Memory was short, so models of the playground and the endpoint left it: {freed}."
WAITS = (
    "It waits, for a minute at most: {need} may be needed, {free} are free, and models that are answering hold {held}. "
    "They leave memory as soon as they have answered."
)
STAYED = "Models that are answering stayed in memory: {held}. It goes on all the same, and may run out of memory."


@dataclass(frozen=True)
class Need:
    """Bytes that an order may take at most, of the GPU's memory or of the machine's."""

    bytes: int
    on_gpu: bool = False

    def free(self) -> int:
        found = gpu_memory() if self.on_gpu else None
        return found.free if found else free_memory()


def make_room(need: Need, *, say: Callable[[str, str], None], go_on: Callable[[], bool]) -> None:
    """Returns once there is room, nothing more can be done, or `go_on` says that nobody wants it any more.

    `say` is told sentences for people, with "info" or "warning".
    """
    until, said = time.monotonic() + LONGEST, False
    while (short := need.bytes - need.free()) > 0:
        answer = ask(short, gpus=gpus_in_use() if need.on_gpu else [])
        freed, held = int(answer.get("freed", 0)), int(answer.get("answering", 0))
        if freed:
            say(LEFT.format(freed=filesize(freed)), "info")
        if freed >= short or not held or not go_on():
            return
        if time.monotonic() > until:
            say(STAYED.format(held=filesize(held)), "warning")
            return
        if not said:
            said = True
            say(WAITS.format(need=filesize(need.bytes), free=filesize(need.free()), held=filesize(held)), "info")
        time.sleep(EVERY)


def ask(wanted: int, *, gpus: list[str]) -> dict[str, Any]:
    """`{"freed": bytes, "answering": bytes}`: what idle models gave up, what those hold that answer. Empty where nothing serves here."""
    if not Path(settings.ENGINE_SOCKET).exists():
        return {}
    try:
        with httpx.Client(transport=httpx.HTTPTransport(uds=settings.ENGINE_SOCKET), timeout=TIMEOUT) as client:
            answer = client.post("http://engine/make_room", json={"bytes": wanted, "gpus": gpus})
    except httpx.HTTPError:
        return {}
    found: dict[str, Any] = answer.json() if answer.status_code == 200 else {}
    return found

"""How long an event takes from the worker process that reports it to the page that shows it.

    python benchmarks/live_latency.py [--steps 200] [--seconds-per-step 0.05] [--pages 1]

Everything is as `manage.py up` runs it, each in a process of its own: Redis, web server, RQ worker, and the worker process of a
rehearsal. The pages are websocket clients. An event's age is the time at which a page has it less its `at`, by the same clock.
"""

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
TARGET = 0.25
"""Seconds, for 95 of 100 events."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seconds-per-step", type=float, default=0.05)
    parser.add_argument("--pages", type=int, default=1)
    options = parser.parse_args()
    with ExitStack() as stack:
        data_dir = stack.enter_context(tempfile.TemporaryDirectory(prefix="studio-latency-"))
        prepare_django(data_dir)
        from tests.fixtures import redis_on_a_socket

        os.environ["REDIS_URL"] = use_redis(stack.enter_context(redis_on_a_socket()))
        address = stack.enter_context(web_server())
        stack.enter_context(
            process("django", "rqworker", "train", "--verbosity", "0", "--worker-class", "studio.orders.rqworker.SlotWorker")
        )
        ages = watch_a_run(address, options)
    report(ages, options)


def prepare_django(data_dir: str) -> None:
    """A studio of its own in a folder that is thrown away."""
    os.environ |= {"STUDIO_DATA_DIR": data_dir, "DJANGO_SETTINGS_MODULE": "studio.settings"}
    sys.path.insert(0, str(ROOT))
    import django

    django.setup()
    from django.core.management import call_command

    call_command("migrate", verbosity=0)


def use_redis(address: str) -> str:
    from django.conf import settings

    settings.REDIS_URL = address
    for queue in settings.RQ_QUEUES.values():
        queue["URL"] = address
    return address


@contextmanager
def process(*words: str, descriptor: int | None = None) -> Iterator[None]:
    started = subprocess.Popen([sys.executable, "-m", *words], cwd=ROOT, pass_fds=[] if descriptor is None else [descriptor])
    try:
        yield
    finally:
        started.terminate()
        started.wait(timeout=30)


@contextmanager
def web_server() -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        descriptor, port = listener.fileno(), listener.getsockname()[1]
        options = ["--lifespan", "off", "--ws", "websockets-sansio", "--log-level", "warning"]
        with process("uvicorn", "studio.asgi:application", "--fd", str(descriptor), *options, descriptor=descriptor):
            yield f"127.0.0.1:{port}"


def watch_a_run(address: str, options: argparse.Namespace) -> list[float]:
    """The age of every event of a run on every page, in seconds."""
    from studio.runs.services import create_run
    from tests.fixtures import make_world

    world = make_world()
    wait_for_a_slot()
    run = create_run(
        world.owner,
        project=world.project,
        name="Watched",
        plugin_name="rehearsal",
        config={"max_steps": options.steps, "seconds_per_step": options.seconds_per_step},
        base=world.base,
        version=world.version,
    )
    ages: list[float] = []
    pages = [threading.Thread(target=watch, args=(address, world.owner, run, ages)) for _ in range(options.pages)]
    for page in pages:
        page.start()
    for page in pages:
        page.join()
    while (run.order.folder / "work").exists():  # the worker is still clearing away
        time.sleep(0.1)
    return ages


def wait_for_a_slot() -> None:
    from studio.orders.models import Slot

    while not Slot.objects.exists():
        time.sleep(0.1)


def watch(address: str, member: Any, run: Any, ages: list[float]) -> None:
    from django.conf import settings
    from django.test import Client as Browser
    from websockets.sync.client import connect

    browser = Browser()
    browser.force_login(member.user)
    headers = {"Cookie": f"{settings.SESSION_COOKIE_NAME}={browser.cookies[settings.SESSION_COOKIE_NAME].value}"}
    url, origin = f"ws://{address}/ws/runs/{run.pk}/?after=0", f"http://{address}"
    with connect(url, additional_headers=headers, origin=origin, proxy=None) as page:  # type: ignore[arg-type]
        opened_at = time.time()
        while True:
            event = json.loads(page.recv(timeout=120))
            reported_at = datetime.fromisoformat(event["at"]).timestamp()
            if reported_at > opened_at:  # what was there before the page has waited for the page
                ages.append(time.time() - reported_at)
            if event["type"] == "end":
                return


def report(ages: list[float], options: argparse.Namespace) -> None:
    p50, p95 = (statistics.quantiles(ages, n=100)[place - 1] for place in (50, 95))
    print(f"{len(ages)} events of {options.steps} steps on {options.pages} page(s)")
    print(f"p50 {p50 * 1000:.0f} ms   p95 {p95 * 1000:.0f} ms   longest {max(ages) * 1000:.0f} ms   target p95 < {TARGET * 1000:.0f} ms")
    sys.exit(0 if p95 < TARGET else 1)


if __name__ == "__main__":
    main()

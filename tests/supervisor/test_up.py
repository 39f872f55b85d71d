"""What a person who starts and stops the studio can count on, tried on a real supervisor with small programs and a real Redis."""

import contextlib
import json
import os
import signal
import stat
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

SCRIPT = Path(__file__).with_name("small_studio.py")
Start = Callable[..., subprocess.Popen[str]]


def until(condition: Callable[[], object], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def ready(folder: Path) -> dict[str, str]:
    until((folder / "ready.json").exists)
    return json.loads((folder / "ready.json").read_text())


def children(process: subprocess.Popen[str]) -> dict[str, psutil.Process]:
    """The living programs of a supervisor, by what their command line holds."""
    marks = {"redis": "unixsocket", "web": "ThreadingHTTPServer", "worker": "time.sleep"}
    found = {}
    for child in psutil.Process(process.pid).children():
        with contextlib.suppress(psutil.Error):
            words = " ".join(child.cmdline())
            found |= {name: child for name, mark in marks.items() if mark in words and "takes up" not in words}
    return found


def gone(processes: dict[str, psutil.Process]) -> bool:
    return not any(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in processes.values())


def read(process: subprocess.Popen[str]) -> str:
    return process.communicate(timeout=20)[0]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    started: list[subprocess.Popen[str]] = []

    def run(behaviour: str = "", *, folder: Path = tmp_path) -> subprocess.Popen[str]:
        command = [sys.executable, str(SCRIPT), str(folder), behaviour]
        env = {name: value for name, value in os.environ.items() if name != "REDIS_URL"} | {"PYTHONPATH": str(SCRIPT.parents[2])}
        process = subprocess.Popen(command, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        started.append(process)
        return process

    yield run
    for process in started:
        process.kill()
        process.wait()


def test_one_start_serves_a_page_and_tells_the_link(start: Start, tmp_path: Path) -> None:
    studio = start()
    told = ready(tmp_path)
    assert told["setup_url"] == f"{told['url']}/setup/token/"
    assert urllib.request.urlopen(told["url"], timeout=5).read() == b"ok"
    assert children(studio).keys() == {"redis", "web", "worker"}
    studio.send_signal(signal.SIGINT)
    output = read(studio)
    assert told["setup_url"] in output
    assert "worker   asleep" in output


def test_halves_of_uploads_are_swept_up_at_the_start(start: Start, tmp_path: Path) -> None:
    (tmp_path / "tmp").mkdir()
    (tmp_path / "tmp" / "left.upload").write_bytes(b"half")
    start()
    ready(tmp_path)
    assert [*(tmp_path / "tmp").iterdir()] == []


def test_redis_is_for_its_owner_alone_and_opens_no_port(start: Start, tmp_path: Path) -> None:
    studio = start()
    ready(tmp_path)
    assert not [
        one for one in children(studio)["redis"].net_connections() if one.status == psutil.CONN_LISTEN and one.family.name != "AF_UNIX"
    ]
    assert stat.S_IMODE((tmp_path / "run" / "redis.sock").stat().st_mode) == 0o700
    assert stat.S_IMODE((tmp_path / "run").stat().st_mode) == 0o700
    assert stat.S_IMODE((tmp_path / "ready.json").stat().st_mode) == 0o600


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_everything_cleanly(start: Start, tmp_path: Path, number: signal.Signals) -> None:
    studio = start()
    ready(tmp_path)
    programs = children(studio)
    studio.send_signal(number)
    output = read(studio)
    assert studio.returncode == 0
    assert gone(programs)
    assert f"takes up after {programs['worker'].pid}" in output, "what a worker held is handed back before Redis ends"
    assert output.rstrip().endswith("stopped")
    assert not (tmp_path / "ready.json").exists()


def test_a_killed_supervisor_leaves_nothing_behind(start: Start, tmp_path: Path) -> None:
    studio = start()
    ready(tmp_path)
    programs = children(studio)
    assert len(programs) == 3
    studio.kill()
    until(lambda: gone(programs), 5)


@pytest.mark.parametrize("name", ["redis", "web", "worker"])
def test_a_killed_program_starts_again(start: Start, tmp_path: Path, name: str) -> None:
    studio = start()
    told = ready(tmp_path)
    killed = children(studio)[name]
    killed.kill()
    until(lambda: name in (now := children(studio)) and now[name].pid != killed.pid)
    assert urllib.request.urlopen(told["url"], timeout=10).read() == b"ok"
    studio.send_signal(signal.SIGINT)
    output = read(studio)
    assert f"{name} ended (signal SIGKILL); it starts again in 0.2 s" in output
    assert (f"takes up after {killed.pid}" in output) == (name == "worker")


def test_a_second_ctrl_c_does_not_wait_for_a_deaf_worker(start: Start, tmp_path: Path) -> None:
    studio = start("stubborn worker")
    ready(tmp_path)
    until((tmp_path / "deaf").exists)
    programs = children(studio)
    studio.send_signal(signal.SIGINT)
    time.sleep(0.3)
    assert studio.poll() is None
    asked = time.monotonic()
    studio.send_signal(signal.SIGINT)
    read(studio)
    assert time.monotonic() - asked < 5
    assert gone(programs)


def test_a_second_start_on_the_same_folder_is_refused(start: Start, tmp_path: Path) -> None:
    studio = start()
    ready(tmp_path)
    second = start()
    assert f"already runs on {tmp_path} (process {studio.pid})" in read(second)
    assert second.returncode == 1
    assert studio.poll() is None


def test_a_web_server_that_cannot_start_ends_the_start_with_a_sentence(start: Start) -> None:
    studio = start("broken web")
    output = read(studio)
    assert "web      no such template" in output
    assert output.rstrip().endswith("The web server does not start; the lines above say why.")
    assert studio.returncode == 1


def test_a_folder_with_a_long_name_works_too(start: Start, tmp_path: Path) -> None:
    folder = tmp_path / ("long" * 30)
    studio = start(folder=folder)
    ready(folder)
    studio.send_signal(signal.SIGTERM)
    read(studio)
    assert studio.returncode == 0

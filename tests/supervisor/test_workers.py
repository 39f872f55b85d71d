"""A worker that is stopped or killed takes its job along."""

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import redis
from rq import Queue, Worker

from studio.supervisor.names import worker_name
from tests.supervisor.jobs import hold

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def worker(redis_server: str) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen([sys.executable, "-m", "tests.supervisor.jobs", redis_server], cwd=ROOT)
    yield process
    process.kill()
    process.wait()


def working(queue: redis.Redis, folder: Path) -> psutil.Process:
    """Gives the worker a job and returns the job's process once it runs."""
    Queue("train", connection=queue).enqueue(hold, str(folder), job_timeout=-1)
    deadline = time.monotonic() + 20
    while not (pids := folder / "pids").exists() or not pids.read_text():
        assert time.monotonic() < deadline, "the job did not start"
        time.sleep(0.02)
    return psutil.Process(int(pids.read_text().split()[0]))


def test_a_worker_is_known_by_its_machine_and_process(queue: redis.Redis, worker: subprocess.Popen[bytes], tmp_path: Path) -> None:
    working(queue, tmp_path)
    assert [one.name for one in Worker.all(connection=queue)] == [worker_name(worker.pid)]


def test_a_worker_that_is_asked_to_stop_lets_its_job_clean_up(queue: redis.Redis, worker: subprocess.Popen[bytes], tmp_path: Path) -> None:
    job = working(queue, tmp_path)
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(timeout=10) == 0
    assert not job.is_running()
    assert (tmp_path / "finally").exists()


def test_a_killed_worker_leaves_no_job_behind(queue: redis.Redis, worker: subprocess.Popen[bytes], tmp_path: Path) -> None:
    job = working(queue, tmp_path)
    child = psutil.Process(int((tmp_path / "pids").read_text().split()[1]))
    worker.kill()
    job.wait(timeout=5)
    child.wait(timeout=5)
    assert not (tmp_path / "finally").exists()

"""What a build's process is started with: the memory that all builds share, and no GPU."""

import subprocess
import sys
from pathlib import Path

import pytest
from django.core.exceptions import ImproperlyConfigured

from studio.ml.gguf import budget
from studio.ml.lockedin import bare_environment
from studio.orders.kinds import KINDS
from studio.orders.supervising import child_environment
from studio.settings import memory
from studio.supervisor.programs import FILE_WORKERS, Place, table


def test_the_memory_that_builds_share_is_bytes_or_a_number_with_a_unit():
    assert [memory(text) for text in ("", "0", "8G", "512m", "1T", "1024")] == [0, 0, 8 << 30, 512 << 20, 1 << 40, 1024]
    for text in ("much", "-1", "8 GB", "G", "1.5G", "8X"):
        with pytest.raises(ImproperlyConfigured, match="such as 8G"):
            memory(text)


def test_builds_of_one_studio_share_one_limit_and_one_ledger(monkeypatch, settings, tmp_path):
    settings.BUILD_MEMORY = 6 << 30
    given = child_environment(KINDS["build"])
    for name in (budget.LIMIT, budget.LEDGER):
        monkeypatch.setenv(name, given[name])
    assert budget.limit() == 6 << 30
    assert budget.ledger() == Path(child_environment(KINDS["build"])[budget.LEDGER])
    settings.DATA_DIR = tmp_path / "another"
    assert Path(child_environment(KINDS["build"])[budget.LEDGER]) != budget.ledger()


def test_a_build_sees_no_gpu(monkeypatch, tmp_path):
    place = Place(data_dir=tmp_path, redis_url="unix:///run/redis.sock", listener=3, slots=("0", "1"))
    workers = [program for program in table(place) if KINDS["build"].queue in program.command]
    assert len(workers) == FILE_WORKERS
    for worker in workers:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", worker.env["CUDA_VISIBLE_DEVICES"])
        code = "import os; print(repr(os.environ['CUDA_VISIBLE_DEVICES']))"
        seen = subprocess.run([sys.executable, "-c", code], env=child_environment(KINDS["build"]), capture_output=True, text=True)
        assert seen.stdout.strip() == "''"
    assert bare_environment()["CUDA_VISIBLE_DEVICES"] == ""  # of llama.cpp's own process

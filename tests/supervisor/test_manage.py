"""The part of manage.py that runs before anything is installed."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def manage(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """manage.py as a module, without running a command."""
    monkeypatch.delenv("STUDIO_EXTRAS", raising=False)
    spec = importlib.util.spec_from_file_location("manage", ROOT / "manage.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_each_command_gets_the_extras_it_needs(manage: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert manage.extras_for("up") - {"gpu"} == {"ml"}
    assert manage.extras_for("test") - {"gpu"} == {"ml", "test", "trackers"}


def test_a_machine_with_an_nvidia_driver_gets_the_gpu_packages(manage: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "gpu" in manage.extras_for("up")


def test_extras_can_be_chosen(manage: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STUDIO_EXTRAS", "test, postgres")
    assert manage.extras_for("up") == {"test", "postgres"}


@pytest.mark.parametrize("words", [["--data-dir", "there"], ["--data-dir=there"]])
def test_every_command_takes_a_data_folder(manage: ModuleType, monkeypatch: pytest.MonkeyPatch, words: list[str]) -> None:
    monkeypatch.setenv("STUDIO_DATA_DIR", "elsewhere")
    assert manage.take_data_dir(["manage.py", "setup", *words, "--email", "ana@example.com"]) == [
        "manage.py",
        "setup",
        "--email",
        "ana@example.com",
    ]
    assert os.environ["STUDIO_DATA_DIR"] == str(Path("there").absolute())


def test_a_data_folder_without_a_name_is_refused(manage: ModuleType) -> None:
    with pytest.raises(SystemExit, match="--data-dir needs a folder"):
        manage.take_data_dir(["manage.py", "up", "--data-dir"])


def test_nothing_is_installed_twice(manage: ModuleType, tmp_path: Path) -> None:
    stamp = tmp_path / "stamp.json"
    assert manage.installed(stamp) is None
    stamp.write_text(json.dumps({"fingerprint": manage.fingerprint(), "extras": ["ml", "test"]}))
    assert manage.installed(stamp) == {"ml", "test"}
    stamp.write_text(json.dumps({"fingerprint": "of older dependencies", "extras": ["ml", "test"]}))
    assert manage.installed(stamp) is None


def test_an_installation_that_fails_shows_why_and_where_its_log_is(manage: ModuleType, tmp_path: Path) -> None:
    pip = tmp_path / "python"
    pip.write_text("#!/bin/sh\necho 'ERROR: No space left on device'\nexit 1\n")
    pip.chmod(0o755)
    with pytest.raises(SystemExit, match=r"(?s)No space left on device.*install\.log"):
        manage.install(pip, {"ml"}, tmp_path / "install.log")
    assert "No space left" in (tmp_path / "install.log").read_text()


def test_importing_it_needs_nothing_but_the_standard_library() -> None:
    command = [sys.executable, "-I", "-S", "-c", f"import runpy; runpy.run_path({str(ROOT / 'manage.py')!r})"]
    subprocess.run(command, check=True)


def test_the_pins_hold_no_build_of_one_machine() -> None:
    assert "+" not in (ROOT / "constraints.txt").read_text()

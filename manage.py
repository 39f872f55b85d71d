#!/usr/bin/env python3
"""The one command: on a bare Python it makes .venv, installs the studio there and goes on in it.

Only the standard library is used here. What a command does is told by `python3 manage.py help COMMAND`.
Environment: STUDIO_VENV (another folder than .venv), STUDIO_EXTRAS (another set of extras, comma-separated).
"""

import fcntl
import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent
SUPPORTED = ((3, 11), (3, 12), (3, 13))


def check_python():
    if sys.version_info[:2] in SUPPORTED:
        return
    names = ["python{}.{}".format(*version) for version in reversed(SUPPORTED)]
    found = [name for name in names if shutil.which(name)]
    advice = "Run: {} manage.py {}".format(found[0], " ".join(sys.argv[1:])) if found else "Install one of them first."
    sys.exit("Adapter Studio needs Python 3.11, 3.12 or 3.13; this is {}.{}. {}".format(*sys.version_info[:2], advice))


check_python()  # before the first line that an older Python does not know

import tomllib


def extras_for(command: str) -> set[str]:
    if "STUDIO_EXTRAS" in os.environ:
        return {name.strip() for name in os.environ["STUDIO_EXTRAS"].split(",") if name.strip()}
    extras = {"ml", "test", "trackers"} if command == "test" else {"ml"}
    if shutil.which("nvidia-smi") or Path("/proc/driver/nvidia").exists():
        extras.add("gpu")
    return extras


def fingerprint() -> str:
    """Changes when the environment has to be installed again: other dependencies, other native sources, or the folder has moved."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    relevant = [
        project["project"],
        project["build-system"],
        project["tool"]["setuptools"],
        (ROOT / "constraints.txt").read_text(),
        (ROOT / "setup.py").read_text(),
        *(source.read_text() for source in sorted((ROOT / "studio/ml/gguf/native").glob("*.[ch]*"))),
        str(ROOT),
    ]
    return hashlib.sha256(json.dumps(relevant, sort_keys=True).encode()).hexdigest()


def installed(stamp: Path) -> set[str] | None:
    """The extras that were installed from today's pyproject.toml and constraints.txt; None when they were not."""
    if not stamp.exists():
        return None
    record = json.loads(stamp.read_text())
    return set(record["extras"]) if record["fingerprint"] == fingerprint() else None


def make_venv(venv: Path) -> None:
    clear = ["--clear"] if (venv / "pyvenv.cfg").exists() else []  # its Python is gone, or its pip never came
    if importlib.util.find_spec("ensurepip"):
        subprocess.run([sys.executable, "-m", "venv", *clear, str(venv)], check=True)
        return
    if not importlib.util.find_spec("pip"):
        version = "{}.{}".format(*sys.version_info[:2])
        sys.exit(
            f"Python's venv module is incomplete here, as Debian and Ubuntu ship it. "
            f"Run: sudo apt install python{version}-venv   and then this command again."
        )
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", *clear, str(venv)], check=True)
    subprocess.run([sys.executable, "-m", "pip", "--python", str(venv / "bin/python"), "install", "-q", "pip"], check=True)


def has_pip(python: Path) -> bool:
    return python.exists() and subprocess.run([str(python), "-m", "pip", "--version"], capture_output=True).returncode == 0


def install(python: Path, extras: set[str], log: Path) -> None:
    """Runs pip, shows on a terminal what it is at, and keeps all that it says in `log`."""
    target = f"{ROOT}[{','.join(sorted(extras))}]" if extras else str(ROOT)
    options = ["--disable-pip-version-check", "--no-input", "--prefer-binary", "--progress-bar", "off"]
    command = [str(python), "-m", "pip", "install", *options, "-c", str(ROOT / "constraints.txt"), "-e", target]
    lines = []
    with log.open("w") as file, subprocess.Popen(command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as pip:
        assert pip.stdout
        for line in pip.stdout:
            file.write(line)
            lines.append(line)
            if sys.stdout.isatty():
                print("\r\033[K  " + line.strip()[:76], end="", flush=True)
    if sys.stdout.isatty():
        print("\r\033[K", end="")
    if pip.returncode:
        tail = "".join(lines[-25:])
        sys.exit(f"{tail}\nThe installation failed; its whole log is {log}. Mend the cause and run the same command again.")


def bootstrap(command: str) -> None:
    """Returns inside an environment that has what `command` needs; replaces this process when it runs outside."""
    venv = Path(os.environ.get("STUDIO_VENV") or ROOT / ".venv").absolute()
    python, stamp = venv / "bin/python", venv / "studio-installed.json"
    wanted = extras_for(command)
    venv.mkdir(parents=True, exist_ok=True)
    with (venv / "studio.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two terminals: the second waits for the first one's installation
        have = installed(stamp)
        if have is None or not wanted <= have:
            started = time.monotonic()
            size = " and loads up to 3 GB, most of it PyTorch" if "ml" in wanted else ""
            print(f"Installing Adapter Studio in {venv}: the first time this takes about 3 minutes{size}.", flush=True)
            if not has_pip(python):
                make_venv(venv)
            extras = wanted | (have or set())
            install(python, extras, venv / "install.log")
            stamp.write_text(json.dumps({"fingerprint": fingerprint(), "extras": sorted(extras)}))
            print(f"Installed in {time.monotonic() - started:.0f} seconds.", flush=True)
    if Path(sys.prefix).resolve() != venv.resolve():
        os.execv(python, [str(python), *sys.argv])  # the same process: Ctrl-C and exit codes pass through


def take_data_dir(arguments: list[str]) -> list[str]:
    """Every command takes `--data-dir D`. The settings read it from the environment, so it goes there before they load."""
    rest = []
    waiting = iter(arguments)
    for argument in waiting:
        name, equals, value = argument.partition("=")
        if name != "--data-dir":
            rest.append(argument)
            continue
        value = value if equals else next(waiting, "")
        if not value:
            sys.exit("--data-dir needs a folder.")
        os.environ["STUDIO_DATA_DIR"] = str(Path(value).expanduser().absolute())
    return rest


def main() -> None:
    command = sys.argv[1] if len(sys.argv) > 1 else "help"
    bootstrap(command)
    if command == "test":
        os.chdir(ROOT)
        os.execv(sys.executable, [sys.executable, "-m", "pytest", *sys.argv[2:]])
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "studio.settings")
    from django.core.management import execute_from_command_line

    execute_from_command_line(take_data_dir(sys.argv))


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
    except subprocess.CalledProcessError as error:
        sys.exit(f"This command failed: {' '.join(error.cmd)}")

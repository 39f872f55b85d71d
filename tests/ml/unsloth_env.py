"""A Python that has Unsloth. Importing it changes transformers and peft, and it brings 1.6 GB: the tests' own environment goes without."""

import fcntl
import hashlib
import importlib.util
import subprocess
import sys
import sysconfig
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "build" / "venv-unsloth"


def python_with_unsloth() -> Path:
    """This interpreter where it has Unsloth, else that of an environment laid over this one, which is made where it is missing.

    What both have, such as torch, comes from this environment; the constraints see to it that nothing of it is needed in another version.
    """
    if importlib.util.find_spec("unsloth"):
        return Path(sys.executable)
    FOLDER.mkdir(parents=True, exist_ok=True)
    python, stamp = FOLDER / "bin" / "python", FOLDER / "installed.txt"
    with (FOLDER.parent / "venv-unsloth.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two sessions: the second waits for the first one's installation
        if not stamp.exists() or stamp.read_text() != wanted():
            install(python)
            stamp.write_text(wanted())
    return python


def requirements() -> list[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    return list(project["project"]["optional-dependencies"]["gpu"])


def wanted() -> str:
    """Changes when it has to be made again."""
    parts = [*requirements(), (ROOT / "constraints.txt").read_text(), sys.executable, sysconfig.get_path("purelib")]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def install(python: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", "--clear", str(FOLDER)], check=True)
    (site,) = (FOLDER / "lib").glob("python*/site-packages")
    (site / "below.pth").write_text(f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n")
    pip = [sys.executable, "-m", "pip", "--python", str(python), "--disable-pip-version-check", "--no-input", "install", "--prefer-binary"]
    done = subprocess.run(
        [*pip, "--quiet", "-c", str(ROOT / "constraints.txt"), *requirements()], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"Unsloth could not be installed for its tests:\n{done.stderr[-2000:]}")

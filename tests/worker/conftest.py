"""Packages that bring plugins, and worker processes that run them."""

import shutil
import sys
import tomllib
from pathlib import Path

import pytest

from studio.training.registry import load_plugins
from studio.training.testing import Case, read_events, worker

THIRD_PARTY = Path(__file__).parent.parent / "third_party"

PLUGIN = """
from training_plugins.rehearsal import Rehearsal

class Plugin(Rehearsal):
    name = "NAME"
    title = "NAME"
    def train(self, config, job):
"""


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A folder of installed packages, seen by this process and by the workers that it starts."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    load_plugins.cache_clear()
    yield folder
    for name in [name for name, module in sys.modules.items() if str(getattr(module, "__file__", "")).startswith(str(folder))]:
        del sys.modules[name]
    load_plugins.cache_clear()


@pytest.fixture
def install(site):
    """Puts a package of tests/third_party where pip would, with the metadata that pip would write."""

    def put(package):
        source = THIRD_PARTY / package
        project = tomllib.loads((source / "pyproject.toml").read_text())["project"]
        shutil.copytree(source / package, site / package, ignore=shutil.ignore_patterns("__pycache__"))
        metadata(site, name=project["name"], version=project["version"], entries=project["entry-points"]["adapter_studio.plugins"])

    return put


@pytest.fixture
def plugin(site):
    """Installs a plugin whose train() has the given body."""

    def put(name, *body):
        (site / f"{name}_plugin.py").write_text(PLUGIN.replace("NAME", name) + "".join(f"        {line}\n" for line in body))
        metadata(site, name=f"{name}-plugin", version="1.0", entries={name: f"{name}_plugin:Plugin"})

    return put


@pytest.fixture
def attempt(tmp_path):
    """Trains in a worker process; returns its events, log and folder."""

    def run(plugin="rehearsal", *, config=None, on_event=None):
        tried = Attempt(Case(plugin=plugin, folder=tmp_path, base=tmp_path))
        quick = {} if plugin == "echo" else {"seconds_per_step": 0.0}
        with worker(tried.case, name="attempt", config=quick | {"max_steps": 4} | (config or {})) as process:
            for event in read_events(process):
                tried.events.append(event)
                if on_event:
                    on_event(event, process, tried)
        tried.returncode = process.returncode
        return tried

    return run


class Attempt:
    def __init__(self, case):
        self.case = case
        self.events = []
        self.returncode = None
        self.folder = case.folder / "attempt"
        self.target = case.folder / "attempt-result"

    @property
    def end(self):
        assert [event["type"] for event in self.events].count("end") == 1
        assert [event["seq"] for event in self.events] == list(range(1, len(self.events) + 1))
        return self.events[-1]

    @property
    def log(self):
        return (self.folder / "log.txt").read_text(errors="replace")

    def of(self, type_):
        return [event for event in self.events if event["type"] == type_]


def metadata(site, *, name, version, entries):
    folder = site / f"{name.replace('-', '_')}-{version}.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    lines = "".join(f"{entry} = {value}\n" for entry, value in entries.items())
    (folder / "entry_points.txt").write_text(f"[adapter_studio.plugins]\n{lines}")

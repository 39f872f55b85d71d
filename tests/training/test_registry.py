"""Plugins are found in training_plugins/; one that is broken is shown with its reason and stops nobody else."""

import subprocess
import sys
from pathlib import Path

import pytest

import training_plugins
from studio.errors import UserError
from studio.training.registry import find, load_plugins, missing_packages

ROOT = Path(training_plugins.__file__).parent.parent

WHOLE = """
from studio.training import TrainConfig, TrainingPlugin, setting

class Good(TrainingPlugin):
    name = "NAME"
    title = "Good"
    def estimate(self, config, base, data, host): ...
    def train(self, config, job): ...
"""


@pytest.fixture
def plugin_file(tmp_path, monkeypatch):
    """Writes a file as a person would drop it into training_plugins/."""
    monkeypatch.setattr(training_plugins, "__path__", [*training_plugins.__path__, str(tmp_path)])

    def write(stem, source):
        (tmp_path / f"{stem}.py").write_text(source)
        load_plugins.cache_clear()

    yield write
    for name in [name for name in sys.modules if name.startswith("training_plugins.") and name.endswith("_dropped")]:
        del sys.modules[name]
    load_plugins.cache_clear()


def test_our_own_plugins_are_found():
    rehearsal = load_plugins()["rehearsal"]
    assert rehearsal.available
    assert (rehearsal.title, rehearsal.origin, rehearsal.reason) == ("Rehearsal (no model)", "training_plugins/rehearsal.py", "")
    assert find("rehearsal") is rehearsal.plugin
    assert all(loaded.available for loaded in load_plugins().values()), load_plugins()


def test_a_file_that_is_dropped_in_is_found(plugin_file):
    plugin_file("good_dropped", WHOLE.replace("NAME", "good"))
    assert load_plugins()["good"].origin == "training_plugins/good_dropped.py"
    assert find("good").title == "Good"


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("def broken(:\n", "It cannot be loaded: SyntaxError"),
        ("import nowhere_to_be_found\n", "It needs the package nowhere_to_be_found, which is not installed."),
        ("raise RuntimeError('no licence')\n", "It cannot be loaded: RuntimeError: no licence"),
        ("import sys\nsys.exit(3)\n", "It cannot be loaded: SystemExit: 3"),
        ("x = 1\n", "It has no class that extends TrainingPlugin."),
        (WHOLE.replace("NAME", "Not A Name"), "Its name must be lower-case letters, digits and underscores, not 'Not A Name'."),
        (WHOLE.replace("def train", "def trian").replace("NAME", "good"), "It does not define train."),
        (WHOLE.replace("NAME", "good") + "    method = 'magic'\n", "Its method must be lora, full or none, not 'magic'."),
        (WHOLE.replace("NAME", "good") + "    Config = dict\n", "Its Config must extend TrainConfig."),
        (WHOLE.replace("NAME", "good") + "    class Config(TrainConfig):\n        size: int\n", "The setting size has no default."),
        (
            WHOLE.replace("NAME", "good") + "    class Config(TrainConfig):\n        size: int = setting(0, label='Size', ge=1)\n",
            "Its default settings are not valid: size: Size must be a whole number of at least 1.",
        ),
        (
            WHOLE.replace("NAME", "good") + "    presets = {'Quick': {'epoch': 1}}\n",
            "Its preset 'Quick' is not valid: epoch: There is no setting \"epoch\". Did you mean epochs?",
        ),
        (WHOLE.replace("NAME", "good") + "    def __init__(self): raise OSError('no disk')\n", "It cannot be loaded: OSError: no disk"),
    ],
)
def test_a_broken_file_is_shown_with_its_reason_and_stops_nobody_else(plugin_file, source, reason):
    plugin_file("bad_dropped", source)
    loaded = load_plugins()["bad_dropped"]
    assert not loaded.available
    assert loaded.reason.startswith(reason)
    assert load_plugins()["rehearsal"].available
    with pytest.raises(UserError, match="The plugin bad_dropped cannot be used: "):
        find("bad_dropped")


def test_a_name_that_is_taken_stays_with_the_first(plugin_file):
    plugin_file("second_dropped", WHOLE.replace("NAME", "rehearsal"))
    assert load_plugins()["rehearsal"].title == "Rehearsal (no model)"
    second = load_plugins()["rehearsal (training_plugins/second_dropped.py)"]
    assert second.reason == "There is already a plugin named rehearsal, from training_plugins/rehearsal.py. Rename one of them."


def test_an_unknown_name_is_answered_with_those_that_exist():
    with pytest.raises(UserError, match=r"There is no plugin named 'peft_lroa'\. Available: .*rehearsal"):
        find("peft_lroa")


def test_packages_that_a_worker_lacks_are_named():
    class Needy(type(find("rehearsal"))):
        requires = ("torch", "flash_attn", "Flash.Linear")

    assert missing_packages(Needy(), {"Torch": "2.10", "flash-linear": "1"}) == ["flash_attn"]
    assert missing_packages(find("rehearsal"), {}) == []


def test_loading_every_plugin_loads_neither_torch_nor_django():
    code = (
        "import sys; from studio.training.registry import load_plugins; assert load_plugins();"
        "print(sorted({'torch', 'transformers', 'peft', 'django', 'pyarrow'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

"""Two processes on a processor train one model: the losses of one process, states that any number can take up, one end for all."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

torch = pytest.importorskip("torch")

from safetensors.torch import load_file  # noqa: E402

from studio.storage import sha256_file  # noqa: E402
from studio.training import DatasetFacts, HostFacts  # noqa: E402
from studio.training.facts import Gpu  # noqa: E402
from studio.training.testing import LONG_ENOUGH, TINY_MODEL, Case, is_step, losses, read_events, run_through, worker  # noqa: E402
from training_plugins.full_finetune import FullFinetune  # noqa: E402

SETTINGS = {"batch_size": 4, "max_length": 64, "learning_rate": 0.003, "precision": "fp32", "processes": 2, "layer_decay": 0.9}

MODEL = "model.safetensors"


@pytest.fixture(scope="module")
def case(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Case:
    requires = ("torch", "transformers", "safetensors")
    return Case(plugin="full_finetune", folder=tmp_path_factory.mktemp("sharded"), base=tiny_model, config=SETTINGS, requires=requires)


def followers_of(pid: int) -> list[psutil.Process]:
    return [child for child in psutil.Process(pid).children() if "studio.ml.follower" in child.cmdline()]


@pytest.fixture(scope="module")
def two(case: Case) -> list[dict[str, Any]]:
    """The events of two processes that nobody disturbed."""
    return run_through(case, name="two")


def test_two_processes_learn_what_one_learns(case, two):
    found = losses(two)
    alone = losses(run_through(replace(case, config=SETTINGS | {"processes": 1}), name="one"))
    assert found.keys() == alone.keys() and len(found) == 41
    for step, values in alone.items():
        assert found[step] == pytest.approx(values, rel=2e-4), step
    results = [load_file(case.folder / f"{name}-result" / MODEL) for name in ("two", "one")]
    assert results[0].keys() == results[1].keys()
    for name, tensor in results[0].items():
        assert torch.allclose(tensor.float(), results[1][name].float(), atol=0.01), name


def test_a_process_that_dies_ends_the_run_with_a_sentence(case):
    with worker(case, name="bereft", config={"max_steps": 100_000}) as process:
        for event in read_events(process):
            if is_step(event, 3) and (others := followers_of(process.pid)):
                others[0].kill()
    assert event["status"] == "failed"
    assert event["error"].startswith("Process 2 of 2 was ended by signal 9; memory may have run out.")


def test_a_pause_of_two_leaves_no_trace(case, two):
    states = case.folder / "paused-states"
    with worker(case, name="paused", config=LONG_ENOUGH, checkpoints=states) as process:
        paused = []
        for event in read_events(process):
            paused.append(event)
            if is_step(event, 10) and not (case.folder / "paused" / "stop").exists():
                (case.folder / "paused" / "pause").touch()
                (case.folder / "paused" / "stop").touch()
                others = followers_of(process.pid)
    assert event["status"] == "paused"
    assert len(psutil.wait_procs(others, timeout=10)[0]) == 1
    resumed = run_through(case, name="resumed", checkpoints=states)
    assert losses([*paused, *resumed]) == losses(two) and max(losses(paused)) < 40
    assert sha256_file(case.folder / "resumed-result" / MODEL) == sha256_file(case.folder / "two-result" / MODEL)


@pytest.mark.parametrize(
    ("gpus", "chosen", "words"),
    [
        (1, {"processes": 2}, "This worker has one GPU"),
        (2, {"processes": 3}, "This worker has 2 GPUs"),
        (2, {"processes": 2, "optimizer": "adamw_8bit"}, "cannot share AdamW in 8 bits"),
        (2, {"processes": 2, "precision": "fp16"}, "cannot compute in fp16"),
        (0, {"processes": 2}, "One is as fast"),
        (0, {"processes": 2, "batch_size": 1}, "leaves some of 2 processes without a row"),
    ],
)
def test_what_several_processes_cannot_do_is_said(gpus, chosen, words):
    cards = [Gpu(name="H100", memory=80 << 30)] * gpus
    host = HostFacts(name="here", cpus=2, memory=8 << 30, gpus=cards, bf16=bool(gpus), packages={"bitsandbytes": "1"})
    data = DatasetFacts(name="support", shape="chat", rows=200, train=180, validation=20)
    issues = FullFinetune().check(FullFinetune.Config(max_length=64, **chosen), TINY_MODEL, data, host)
    assert any(words in issue.message and issue.field in ("processes", "batch_size") for issue in issues), issues

"""A training that was killed, or paused, goes on as if nothing had been: the same losses and the same bytes in the end."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from studio.checkpoints import newest, states, step_of  # noqa: E402
from studio.errors import UserError  # noqa: E402
from studio.storage import sha256_file  # noqa: E402
from studio.training import Stopped  # noqa: E402
from studio.training.testing import Case, check_same, is_step, read_events, run_through, worker  # noqa: E402
from tests.ml.test_training import QUICK, ROWS, RecordingJob, chat  # noqa: E402
from training_plugins.peft_lora import PeftLora  # noqa: E402

LONG = {"max_steps": 8, "dropout": 0.2, "gradient_accumulation": 2, "batch_size": 2, "evaluate_every": 3}


def test_a_killed_run_with_dropout_ends_with_the_bytes_of_one_that_was_not_killed(tiny_model, tmp_path):
    settings = {"rank": 4, "dropout": 0.1, "batch_size": 2, "gradient_accumulation": 2, "max_length": 64, "learning_rate": 0.003}
    case = Case(
        plugin="peft_lora", folder=tmp_path, base=tiny_model, config=settings, requires=("torch", "transformers", "peft", "safetensors")
    )
    whole = run_through(case, name="whole")
    kept = tmp_path / "states"
    with worker(case, name="killed", config={"max_steps": 40, "save_every": 4, "evaluate_every": 4}, checkpoints=kept) as process:
        for event in read_events(process):
            if is_step(event, 14):
                break
        process.kill()
    half_written = kept / "step-00000099.part"
    half_written.mkdir()
    damaged = newest(kept)
    shutil.copytree(damaged, kept / "step-00000098")
    (kept / "step-00000098" / "optimizer.safetensors").write_bytes(b"cut")
    resumed = run_through(case, name="resumed", checkpoints=kept)
    check_same(case, whole, resumed, names=("whole", "resumed"), after=step_of(damaged))
    assert step_of(damaged) >= 12
    adapters = [tmp_path / f"{name}-result" / "adapter_model.safetensors" for name in ("whole", "resumed")]
    assert sha256_file(adapters[0]) == sha256_file(adapters[1])
    assert [state.name for state in kept.iterdir() if step_of_name(state) > 40] == []


def step_of_name(path: Path) -> int:
    return int(path.name.removeprefix("step-").removesuffix(".part"))


@pytest.fixture
def attempt(tmp_path: Path, tiny_model: Path) -> Callable[..., RecordingJob]:
    """`attempt(pause_when=…, resume=…)` is one attempt at the same run; all save into one folder."""

    def run(*, pause_when: Any = None, resume: bool = False, rows: Any = ROWS, base: Path = tiny_model, **settings: Any) -> RecordingJob:
        job = PausingJob(tmp_path / f"attempt-{len(list(tmp_path.iterdir()))}", base, rows)
        if pause_when:
            job.stop_when = pause_when
            job.checkpoints = tmp_path / "states"
        if resume:
            job.checkpoints = tmp_path / "states"
            job.resume = newest(job.checkpoints)
        plugin = PeftLora()
        try:
            plugin.train(plugin.Config(**QUICK | LONG | settings), job)
        except Stopped:
            assert list(job.out.iterdir()) == []
        return job

    return run


class PausingJob(RecordingJob):
    """Whoever stops it, pauses it."""

    def pausing(self) -> bool:
        return self.stopping()


def in_the_middle_of_a_step(job: RecordingJob) -> bool:
    """True from the second batch of the fifth step on."""
    job.asked = getattr(job, "asked", 0) + (len(job.values("loss")) == 4)
    return job.asked > 2


def in_the_second_look(job: RecordingJob) -> bool:
    return len(job.values("loss")) == 3 and job.all("phase")[-1]["name"] in ("evaluating", "saving")


def in_the_last_look(job: RecordingJob) -> bool:
    return len(job.values("loss")) == 8


@pytest.mark.parametrize("pause_when", [in_the_middle_of_a_step, in_the_second_look, in_the_last_look])
def test_a_pause_leaves_no_trace_wherever_it_comes(attempt, pause_when):
    whole, first = attempt(), attempt(pause_when=pause_when)
    second = attempt(resume=True)
    assert len(first.values("loss")) < 8 or pause_when is in_the_last_look
    for name in ("loss", "validation_loss", "tokens", "epoch", "learning_rate", "grad_norm"):
        assert first.values(name) + second.values(name) == whole.values(name), name
    answers = [[sample for job in jobs for sample in job.all("sample")] for jobs in ((whole,), (first, second))]
    assert answers[0] == answers[1]
    for name in ("adapter_model.safetensors", "README.md"):
        assert (second.out / name).read_bytes() == (whole.out / name).read_bytes()


def test_a_pause_before_the_first_step_has_nothing_to_save(attempt, tmp_path):
    job = attempt(pause_when=lambda job: True)
    assert not job.all("metric") and not (tmp_path / "states").exists()


def test_of_the_states_the_last_two_and_the_best_stay(attempt, tmp_path):
    attempt(pause_when=lambda job: len(job.values("loss")) == 7, evaluate_every=1)
    attempt(resume=True, evaluate_every=1, max_steps=8)
    looks = {step_of(state): json.loads((state / "manifest.json").read_text())["facts"] for state in states(tmp_path / "states")}
    assert {6, 7} <= looks.keys() and len(looks) <= 3
    assert all(facts["validation_loss"] for step, facts in looks.items() if step != 7)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"learning_rate": 0.001, "seed": 1}, "learning_rate, seed"),
        ({"rows": [*ROWS[:-1], chat("Hi?", "Hello.")]}, "the rows"),
    ],
)
def test_a_state_of_another_run_is_refused(attempt, changes, named):
    attempt(pause_when=in_the_middle_of_a_step)
    with pytest.raises(UserError, match=f"The state of step 4 was saved with other values of {named}, so") as caught:
        attempt(resume=True, **changes)
    assert caught.value.message.endswith("Start a copy of the run instead.")


def test_how_often_it_is_saved_and_looked_at_may_change(attempt):
    attempt(pause_when=in_the_middle_of_a_step)
    assert len(attempt(resume=True, save_every=2, evaluate_every=4).values("loss")) == 4


def test_a_state_of_another_machine_is_taken_with_a_word(attempt, tmp_path):
    attempt(pause_when=in_the_middle_of_a_step)
    state = newest(tmp_path / "states")
    saved = json.loads((state / "state.json").read_text())
    saved["machine"]["threads"] = "64"
    (state / "state.json").write_text(json.dumps(saved))
    manifest = json.loads((state / "manifest.json").read_text())
    manifest["files"]["state.json"]["sha256"] = sha256_file(state / "state.json")
    (state / "manifest.json").write_text(json.dumps(manifest))
    notes = [note["text"] for note in attempt(resume=True).all("note")]
    assert "The steps before this were made with threads 64. From here on, losses may differ in their last digits." in notes

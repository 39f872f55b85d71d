"""A worker process does one order: it reports numbered events, seals what was made, and says how it ended."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from studio.storage import read_manifest
from studio.training.orders import Event
from studio.training.testing import Case, environment, write_order


def test_a_run_ends_with_a_sealed_result(attempt):
    tried = attempt()
    end = tried.end
    assert (end["status"], end["error"], tried.returncode) == ("succeeded", "", 0)
    manifest = read_manifest(tried.target)
    assert end["result"] == {
        "folder": str(tried.target),
        "sha256": manifest["sha256"],
        "size": manifest["size"],
        "files": manifest["files"],
    }
    assert manifest["files"].keys() == {"rehearsal.json", "lineage.json"}
    assert not (tried.folder / "out").exists()


def test_a_run_reports_what_its_page_shows(attempt):
    tried = attempt()
    assert [phase["name"] for phase in tried.of("phase")] == ["preparing", "tokenizing", "training", "saving", "saving"]
    losses = [metric["loss"] for metric in tried.of("metric") if "loss" in metric]
    assert len(losses) == 4
    assert losses[0] > losses[-1] > 0
    assert any("validation_loss" in metric for metric in tried.of("metric"))
    assert {"learning_rate", "grad_norm", "tokens_per_second", "memory"} <= tried.of("metric")[0].keys()
    assert tried.of("sample")[0]["prompt"] == "What is 2 and 2?"
    assert tried.of("checkpoint")[0]["folder"] == "checkpoints/step-00000001"
    assert tried.of("progress")[-1]["done"] == 4
    for event in tried.events:
        Event.model_validate(event)


def test_the_lineage_tells_how_to_make_it_again(attempt):
    tried = attempt(config={"seed": 7})
    lineage = json.loads((tried.target / "lineage.json").read_text())
    assert (lineage["run"], lineage["plugin"], lineage["seed"], lineage["config"]["seed"]) == ("attempt", "rehearsal", 7, 7)
    assert lineage["packages"]["pydantic"]
    assert lineage["python"].startswith("3.")
    assert lineage["host"]


def test_the_same_seed_gives_the_same_losses(attempt, tmp_path):
    first = attempt(config={"seed": 3})
    (tmp_path / "attempt").rename(tmp_path / "first")
    (tmp_path / "attempt-result").rename(tmp_path / "first-result")
    second = attempt(config={"seed": 3})
    assert [m.get("loss") for m in first.of("metric")] == [m.get("loss") for m in second.of("metric")]


def test_only_events_stand_on_standard_output(plugin, attempt):
    plugin(
        "noisy",
        "import os, sys",
        "print('a banner')",
        "os.write(1, b'\\x00\\xff\\xfe binary \\x1b[2J\\n')",
        "sys.stdout.flush()",
        "import subprocess; subprocess.run(['echo', 'from a child'], check=True)",
        "return super().train(config, job)",
    )
    tried = attempt("noisy")
    assert tried.end["status"] == "succeeded"
    assert (tried.folder / "events.jsonl").read_bytes().count(b"\n") == len(tried.events)
    assert "a banner" in tried.log
    assert "from a child" in tried.log


def test_texts_and_numbers_of_a_plugin_are_made_fit_for_any_screen(plugin, attempt):
    plugin(
        "rude",
        "job.note('\\x00bell\\x07 \\x1b[31mred\\x9b \\ud800 line\\r\\nnext\\ttab' + 'x' * 30_000)",
        "job.sample(step=1, prompt='p', answer='y' * 30_000)",
        "job.metric(step=1, total=2, loss=float('nan'), grad_norm=float('inf'), tokens=3)",
        "job.metric(step=2, total=2, loss=float('-inf'))",
        "job.progress(float('nan'), 2)",
        "(job.out / 'a').write_text('a')",
        "return job.out",
    )
    tried = attempt("rude")
    assert tried.end["status"] == "succeeded"
    text = tried.of("note")[0]["text"]
    assert text.startswith("bell [31mred ? line\nnext\ttabxxx")
    assert len(text) == len(tried.of("sample")[0]["answer"]) == 20_000
    first, second = tried.of("metric")
    assert (first["loss"], first["grad_norm"], first["tokens"], second["loss"]) == (None, None, 3, None)
    warnings = [note["text"] for note in tried.of("note") if note["level"] == "warning"]
    assert warnings == ["loss is nan, which is no number. A learning rate that is too high often causes this."]


def test_progress_is_sent_four_times_a_second_and_its_last_word_always(plugin, attempt):
    plugin(
        "busy",
        "import time",
        "job.phase('training')",
        "end = time.monotonic() + 0.7",
        "done = 0",
        "while time.monotonic() < end: done += 1; job.progress(done, 10**9)",
        "job.progress(10**9, 10**9)",
        "job.phase('saving')",
        "(job.out / 'a').write_text('a')",
        "return job.out",
    )
    tried = attempt("busy")
    assert 3 <= len(tried.of("progress")) <= 5
    assert tried.of("progress")[-1]["done"] == 10**9
    kinds = [event["type"] for event in tried.events]
    assert kinds[-4:] == ["progress", "phase", "phase", "end"]


@pytest.mark.parametrize("how", ["signal", "file"])
def test_a_stop_keeps_what_was_learnt(attempt, how):
    asked = []

    def stop(event, process, tried):
        if event["type"] == "metric" and not asked:
            asked.append(time.monotonic())
            process.send_signal(signal.SIGTERM) if how == "signal" else (tried.folder / "stop").touch()

    tried = attempt(config={"max_steps": 100_000, "seconds_per_step": 0.02}, on_event=stop)
    assert time.monotonic() - asked[0] < 5
    assert tried.end["status"] == "stopped"
    assert 1 <= json.loads((tried.target / "rehearsal.json").read_text())["steps"] < 100_000
    assert tried.end["result"]["folder"] == str(tried.target)


def test_a_stop_before_anything_was_learnt_leaves_nothing(plugin, attempt):
    plugin("early", "import os, signal", "os.kill(os.getpid(), signal.SIGTERM)", "job.raise_if_stopped()")
    tried = attempt("early")
    assert (tried.end["status"], tried.end["result"], tried.returncode) == ("stopped", {}, 0)
    assert not tried.target.exists()


def test_what_was_finished_before_it_saw_the_stop_has_succeeded(plugin, attempt):
    plugin("deaf", "import os, signal", "(job.out / 'a').write_text('a')", "os.kill(os.getpid(), signal.SIGTERM)", "return job.out")
    assert attempt("deaf").end["status"] == "succeeded"


@pytest.mark.parametrize(
    ("body", "error"),
    [
        ("raise ValueError('rank is odd')", "The training code failed: ValueError: rank is odd. The log has the details."),
        ("raise KeyError()", "The training code failed: KeyError. The log has the details."),
        ("raise SystemExit(0)", "The training code failed: SystemExit: 0. The log has the details."),
        ("raise MemoryError", "Memory ran out. Choose a smaller batch size or max length, or a smaller base model."),
        (
            "raise type('OutOfMemoryError', (RuntimeError,), {})('CUDA out of memory')",
            "Memory ran out. Choose a smaller batch size or max length, or a smaller base model.",
        ),
        ("import errno; raise OSError(errno.ENOSPC, 'x')", "The disk is full. Free some space, then start again."),
        ("import nowhere_at_all", "This worker does not have the package nowhere_at_all. Install it, then start again."),
        ("from studio.errors import UserError; raise UserError('Choose another base model.')", "Choose another base model."),
        (
            "return job.out",
            "The training code failed: RuntimeError: the plugin raising left no files in job.out. The log has the details.",
        ),
        (
            "job.metric(step=1, total=1, seq=4)",
            "The training code failed: ValueError: A metric cannot be named seq. The log has the details.",
        ),
        ("raise ValueError('\\x1b[2J\\ud800 many' + ' lines\\n' * 900)", None),
    ],
)
def test_a_plugin_that_raises_fails_with_a_sentence(plugin, attempt, body, error):
    plugin("raising", body)
    tried = attempt("raising")
    assert (tried.end["status"], tried.returncode) == ("failed", 1)
    if error:
        assert tried.end["error"] == error
    assert len(tried.end["error"]) < 700
    assert "Traceback" in tried.log
    assert not tried.target.exists()


def test_settings_are_judged_again_where_they_are_used(attempt):
    assert attempt(config={"epochs": 0}).end["error"] == "The settings are not valid. epochs: Must be above 0 and at most 1000."


def test_rows_of_a_shape_that_the_plugin_does_not_read_are_refused(plugin, attempt, site):
    plugin("picky", "pass")
    path = site / "picky_plugin.py"
    path.write_text(path.read_text().replace('title = "picky"', 'title = "Picky"; reads = ("text",)'))
    assert attempt("picky").end["error"] == "Picky learns from text rows; this dataset has chat rows. Choose another."


def test_a_package_that_the_worker_lacks_is_named(plugin, attempt, site):
    plugin("needy", "pass")
    path = site / "needy_plugin.py"
    path.write_text(path.read_text().replace('title = "needy"', 'title = "Needy"; requires = ("nowhere-at-all",)'))
    assert attempt("needy").end["error"] == "Needy needs nowhere-at-all, which this worker does not have. Install it, then start again."


def test_an_order_that_cannot_be_read_is_answered(tmp_path):
    path = tmp_path / "order.json"
    path.write_text(json.dumps({"attempt": 3, "first_seq": 41, "kind": "magic"}))
    done = subprocess.run(
        [sys.executable, "-m", "studio.worker", str(path)], env=environment(), capture_output=True, text=True, check=False
    )
    end = json.loads(done.stdout)
    assert (end["type"], end["status"], end["seq"], end["attempt"]) == ("end", "failed", 41, 3)
    assert end["error"].startswith("The order could not be read: Order has ")
    assert (tmp_path / "events.jsonl").read_text() == done.stdout


def test_a_result_that_stands_there_already_is_never_replaced(attempt, tmp_path):
    (tmp_path / "attempt-result").mkdir()
    tried = attempt()
    assert tried.end["status"] == "failed"
    assert "FileExistsError" in tried.end["error"]
    assert list(tried.target.iterdir()) == []


def test_a_worker_without_a_listener_pauses_by_itself(tmp_path):
    path = write_order(Case(plugin="rehearsal", folder=tmp_path, base=tmp_path), name="alone", config={"max_steps": 100_000})
    process = subprocess.Popen(
        [sys.executable, "-m", "studio.worker", str(path)], env=environment(), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    process.stdout.readline()
    process.stdout.close()
    process.wait(timeout=10)
    lines = (path.parent / "events.jsonl").read_text().splitlines()
    assert json.loads(lines[-1])["status"] == "paused"


def test_a_worker_dies_with_the_process_that_started_it(tmp_path):
    path = write_order(Case(plugin="rehearsal", folder=tmp_path, base=tmp_path), name="orphan", config={"max_steps": 100_000})
    code = (
        "import subprocess, sys; child = subprocess.Popen([sys.executable, '-m', 'studio.worker', sys.argv[1]], stdout=subprocess.PIPE);"
        "child.stdout.readline(); print(child.pid, flush=True); sys.stdin.read()"
    )
    parent = subprocess.Popen([sys.executable, "-c", code, str(path)], env=environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    child = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 10
    while alive(child) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not alive(child)
    parent.stdin.close()
    parent.stdout.close()


def test_memory_beyond_the_limit_is_refused_to_the_order_and_named(plugin, attempt, monkeypatch):
    if sys.platform != "linux":
        pytest.skip("Only Linux counts mapped memory.")
    plugin("greedy", "x = bytearray(2 << 30)")
    monkeypatch.setenv("ADAPTER_STUDIO_MEMORY_LIMIT", str(1 << 30))
    assert attempt("greedy").end["error"].startswith("Memory ran out.")


def test_the_worker_itself_loads_neither_torch_nor_django(plugin, attempt):
    plugin("nosy", "import sys", "(job.out / 'loaded').write_text(' '.join(sys.modules))", "return job.out")
    loaded = set((attempt("nosy").target / "loaded").read_text().split())
    assert not loaded & {"torch", "transformers", "peft", "django"}


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    stat = Path(f"/proc/{pid}/stat")
    return not (stat.exists() and stat.read_text().rpartition(")")[2].split()[0] == "Z")

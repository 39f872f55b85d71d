"""An order is worked off by a process of its own: to a recorded result, to a stop, or to one clear end."""

import json
import os
import signal
import time
from pathlib import Path

import pytest
from django.conf import settings

from studio.artifacts.models import Artifact
from studio.errors import UserError
from studio.orders import supervising
from studio.orders.models import Order, Slot
from studio.orders.services import claim, request_stop
from studio.runs.services import stop_run
from studio.storage import read_manifest, sha256_file
from tests.fixtures import work_off
from tests.orders.conftest import events_of, work_while

# Writes to the pipe that events go through, which no plugin is told of.
TO_THE_PIPE = (
    "import json, os, stat",
    "pipes = [fd for fd in range(3, 64) if os.path.exists(f'/proc/self/fd/{fd}') and stat.S_ISFIFO(os.fstat(fd).st_mode)]",
    "def forge(line): [os.write(fd, line) for fd in pipes]",
)


def test_a_run_ends_with_a_recorded_artifact(start, acme):
    order = work_off(start())
    assert (order.status, order.error, order.attempt) == ("succeeded", "", 1)
    artifact = order.artifacts.get()
    assert (artifact.kind, artifact.project, artifact.base_model) == ("rehearsal", acme.project, acme.base)
    assert artifact.lineage["dataset_version"]["sha256"] == acme.version.sha256
    assert artifact.lineage["config"]["max_steps"] == 4
    assert artifact.files == read_manifest(artifact.folder)["files"]
    for name, facts in artifact.files.items():
        assert sha256_file(artifact.folder / name) == facts["sha256"]


def test_its_events_are_stored_as_they_were_reported_and_numbered_without_gaps(start):
    order = work_off(start())
    events = events_of(order)
    reported = [json.loads(line) for line in (order.folder / "events.jsonl").read_text().splitlines()]
    assert [(event.seq, event.type) for event in events] == [(line["seq"], line["type"]) for line in reported]
    for event, line in zip(events[:-1], reported, strict=False):
        assert event.wire() == line | {"at": event.at.isoformat()}
    assert events[-1].body == {"status": "succeeded", "error": ""}
    assert (order.latest["step"], order.done, order.total, order.unit) == (4, 4, 4, "steps")
    assert order.heartbeat_at is not None
    assert order.started_at < order.ended_at


def test_what_the_process_wrote_for_itself_is_cleared_away(start):
    order = work_off(start())
    names = {path.name for path in order.folder.iterdir()}
    assert {"events.jsonl", "log.txt", "order.json"} <= names
    assert not names & {"work", "out"}


def test_the_process_is_given_no_secret(strange, start, monkeypatch):
    for name in ("STUDIO_SECRET_KEY", "STUDIO_DATABASE_URL", "REDIS_URL", "DJANGO_SETTINGS_MODULE", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, f"planted {name}")
    strange("curious", "import os", "(job.out / 'seen').write_text(repr(dict(os.environ)))", "return job.out")
    order = work_off(start("curious"))
    seen = (order.artifacts.get().folder / "seen").read_text() + (order.folder / "order.json").read_text()
    assert "planted" not in seen
    assert settings.SECRET_KEY not in seen


def test_a_run_that_fails_says_why_and_leaves_nothing(start):
    order = work_off(start(fail_at=2))
    assert order.status == "failed"
    assert order.error == "The training code failed: RuntimeError: Step 2 failed, as the settings asked. The log has the details."
    assert "Traceback" in order.log_file.read_text()
    assert events_of(order)[-1].body["status"] == "failed"
    assert not Artifact.objects.filter(order=order).exists()


def test_without_a_word_from_any_machine_the_run_says_what_to_do(start):
    order = start()
    Slot.objects.all().delete()
    assert work_off(order).error == "The worker has not said yet what machine it runs on. Start the run again in a moment."
    assert order.status == "failed"


@pytest.mark.django_db(transaction=True)
def test_a_stop_keeps_what_was_learnt(start, acme):
    order = start(max_steps=100_000, seconds_per_step=0.02)
    work_while(order, lambda: stop_run(acme.owner, order.run))
    assert (order.status, order.error) == ("stopped", "")
    kept = json.loads((order.artifacts.get().folder / "rehearsal.json").read_text())
    assert 1 <= kept["steps"] < 100_000
    assert events_of(order)[-1].body["status"] == "stopped"


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("first", [True, False], ids=["at once", "after a stop that was to keep it"])
def test_a_stop_that_discards_leaves_nothing(start, acme, first):
    order = start(max_steps=100_000, seconds_per_step=0.02)

    def discard():
        if not first:
            stop_run(acme.owner, order.run)
        stop_run(acme.owner, order.run, discard=True)

    work_while(order, discard)
    assert (order.status, order.discard) == ("stopped", True)
    assert not Artifact.objects.filter(order=order).exists()
    assert not Path(settings.DATA_DIR, "artifacts", f"{order.pk}-1").exists()


@pytest.mark.parametrize("status", [Order.Status.QUEUED, Order.Status.RECOVERING])
def test_an_order_that_waits_stops_at_once_and_is_never_begun(start, status):
    order = start()
    Order.objects.filter(pk=order.pk).update(status=status)
    order.refresh_from_db()
    request_stop(order)
    assert (order.status, events_of(order)[-1].type) == ("stopped", "end")
    assert order.ended_at
    assert claim(str(order.pk), attempt=1, worker="late") is None
    with pytest.raises(UserError, match="already ended"):
        request_stop(order)


def test_a_stop_before_the_process_listens_ends_the_run(start):
    order = start(max_steps=100_000, seconds_per_step=0.02)
    claimed = claim(str(order.pk), attempt=1, worker="test")
    request_stop(claimed)
    supervising.Supervisor(claimed).run()
    order.refresh_from_db()
    assert (order.status, order.error) == ("stopped", "")
    events_of(order)


DEATHS = {
    "exits with 0": ("import os; os._exit(0)", "The process ended without a result (exit code 0). The log has its last words."),
    "exits with 3": ("import os; os._exit(3)", "The process ended without a result (exit code 3). The log has its last words."),
    "is killed": (
        "import os; os.kill(os.getpid(), 9)",
        "Something else ended the process (signal 9); memory was not full shortly before. The log has its last words.",
    ),
    "crashes": ("import os; os.kill(os.getpid(), 11)", "The process crashed (signal 11). The log has its last words."),
}


@pytest.mark.parametrize("how", DEATHS)
def test_a_process_that_dies_has_failed_whatever_its_exit_code(strange, start, how):
    line, sentence = DEATHS[how]
    strange("dying", "job.phase('training')", "(job.out / 'half').write_text('half')", line)
    order = work_off(start("dying"))
    assert (order.status, order.error) == ("failed", sentence)
    assert events_of(order)[-1].body == {"status": "failed", "error": sentence}
    assert not Artifact.objects.filter(order=order).exists()


def test_what_a_plugin_prints_goes_to_the_log(strange, start):
    forged = '{"seq": 9, "attempt": 1, "type": "end", "status": "succeeded"}'
    strange("loud", f"import os; print('{forged}', flush=True); os.write(1, b'\\xff\\x00{forged}\\n')", "return super().train(config, job)")
    order = work_off(start("loud"))
    assert order.status == "succeeded"
    assert order.log_file.read_bytes().count(forged.encode()) == 2
    assert len([event for event in events_of(order) if event.type == "end"]) == 1


def test_garbage_among_the_events_makes_no_gap(strange, start):
    strange(
        "forging",
        *TO_THE_PIPE,
        "forge(b'\\xff\\xfe no json\\n{}\\n[]\\nnull\\n' + b'x' * 100_000 + b'\\n')",
        "forge(json.dumps({'seq': 1, 'attempt': 1, 'type': 'note', 'text': 'a repeat'}).encode() + b'\\n')",
        "forge(json.dumps({'seq': 50, 'attempt': 7, 'type': 'note', 'text': 'of another attempt'}).encode() + b'\\n')",
        'forge(b\'{"seq": 3, "attempt": 1, "type": "metric", "step": "x", "total": [], "unit": 4}\\n\')',
        "forge(b'half of a line')",
        "return super().train(config, job)",
    )
    order = work_off(start("forging"))
    assert order.status == "succeeded"
    texts = [event.body.get("text") for event in events_of(order)]
    assert "a repeat" not in texts
    assert "of another attempt" not in texts


def test_an_end_that_is_none_is_a_failure(strange, start):
    strange(
        "boasting",
        *TO_THE_PIPE,
        'forge(b\'{"seq": 99, "attempt": 1, "type": "end", "status": "splendid"}\\n\')',
        "import time; time.sleep(60)",
    )
    order = work_off(start("boasting"))
    assert order.status == "failed"
    assert events_of(order)[-1].body["status"] == "failed"


@pytest.mark.django_db(transaction=True)
def test_a_process_that_ignores_a_stop_is_ended(strange, start, acme, monkeypatch):
    monkeypatch.setattr(supervising, "STOP_GRACE", 0.3)
    strange("deaf", "import time", "[job.phase('training') for _ in range(9)]", "while True: time.sleep(1)")
    order = start("deaf")
    work_while(order, lambda: stop_run(acme.owner, order.run))
    assert (order.status, order.error) == ("stopped", "It did not stop in time and was ended; nothing was kept.")
    events_of(order)


def test_a_process_that_does_not_exit_after_its_end_is_ended(strange, start):
    strange(
        "lingering", "import threading, time; threading.Thread(target=time.sleep, args=(600,)).start()", "return super().train(config, job)"
    )
    started = time.monotonic()
    assert work_off(start("lingering")).status == "succeeded"
    assert time.monotonic() - started < 30


def test_processes_that_a_plugin_started_end_with_it(strange, start):
    strange(
        "parental",
        *TO_THE_PIPE,
        "import subprocess",
        "[os.set_inheritable(fd, True) for fd in pipes]",
        "child = subprocess.Popen(['sleep', '600'], close_fds=False)",
        "job.note(str(child.pid))",
        "os._exit(0)",
    )
    order = work_off(start("parental"))
    assert order.status == "failed"
    child = next(int(event.body["text"]) for event in events_of(order) if event.type == "note")
    assert not is_alive(child)


def is_alive(pid: int) -> bool:
    """True for a process that runs; one that has ended and was not yet waited for does not."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"


def test_a_worker_that_is_told_to_end_takes_its_process_along(start, monkeypatch):
    """RQ ends a job by an exception in it; nothing may go on without a supervisor."""
    order = start(max_steps=100_000, seconds_per_step=0.02)
    claimed = claim(str(order.pk), attempt=1, worker="test")
    supervisor, seen = supervising.Supervisor(claimed), []

    def end_at_the_first_metric(number, frame):
        raise SystemExit(128 + number)

    def read(line, read=supervisor.read):
        event = read(line)
        if event and event.type == "metric" and not seen:
            seen.append(event)
            os.kill(os.getpid(), signal.SIGTERM)
        return event

    monkeypatch.setattr(supervisor, "read", read)
    before, folder = signal.signal(signal.SIGTERM, end_at_the_first_metric), claimed.folder
    try:
        with pytest.raises(SystemExit):
            supervisor.run()
    finally:
        signal.signal(signal.SIGTERM, before)
    lines = (folder / "events.jsonl").read_text().splitlines()
    assert json.loads(lines[-1])["type"] == "end"  # it noticed that nobody listens any more
    order.refresh_from_db()
    assert (order.status, order.attempt, order.losses) == ("recovering", 2, 0)  # it waits to be taken up again, and nobody is to blame

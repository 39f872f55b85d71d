"""What a worker process says and leaves is not believed: it is measured, cleaned and compared before it is recorded."""

import json
from pathlib import Path

import pytest
from django.test import TestCase

from studio.artifacts.models import Artifact
from studio.basemodels.services import register
from studio.orders import logfile
from studio.orders.kinds import KINDS
from studio.orders.models import Order
from studio.orders.results import Untrue, checked
from studio.orders.services import claim, worker_lost
from studio.orders.supervising import MAX_METRICS, Supervisor, child_environment
from studio.storage import commit_folder
from tests.fixtures import make_version, work_off
from tests.orders.conftest import events_of
from tests.orders.test_working_off import TO_THE_PIPE


def test_a_plugin_that_prints_without_end_does_not_fill_the_disk(strange, start, monkeypatch):
    monkeypatch.setattr(logfile, "HEAD", 1 << 20)
    monkeypatch.setattr(logfile, "TAIL", 1 << 16)
    strange(
        "babbling",
        "import sys",
        "print('the first words', flush=True)",
        "for _ in range(16): print('x' * (1 << 20)); print('y' * (1 << 20), file=sys.stderr)",
        "raise RuntimeError('the last words')",
    )
    order = work_off(start("babbling"))
    assert order.status == "failed"
    assert order.log_file.stat().st_size < 2 << 20
    log = order.log_file.read_text()
    assert log.startswith("the first words")
    assert "bytes were left out here" in log
    assert "the last words" in log


def test_what_no_database_takes_is_taken_out_of_events(strange, start):
    strange(
        "hostile",
        *TO_THE_PIPE,
        'head = \'{"attempt": 1, "seq": %d, \'',
        'forge((head % 3 + \'"type": "progress", "done": NaN, "total": 1e999}\\n\').encode())',
        'forge((head % 4 + \'"type": "metric", "step": 1, "total": 4, "loss": NaN, "big": 1\' + \'0\' * 400 + \'}\\n\').encode())',
        'forge((head % 5 + \'"type": "note", "text": "a\\\\u0000b\\\\u001b[31m"}\\n\').encode())',
        'forge((head % 6 + \'"type": "note", "text": "old", "at": "0001-01-01T00:00:00+14:00"}\\n\').encode())',
        'forge((head % 7 + \'"type": "note", "text": "\' + \'x\' * 300_000 + \'"}\\n\').encode())',
        "many = {f'name{number}': 1 for number in range(5000)}",
        "forge(json.dumps({'attempt': 1, 'seq': 8, 'type': 'metric', 'step': 1, 'total': 4} | many).encode() + b'\\n')",
        "while job._reporter.seq < 10: job.note('as many as were forged')",
        "return super().train(config, job)",
    )
    order = work_off(start("hostile"))
    assert (order.status, order.attempt) == ("succeeded", 1)
    notes = [event.body["text"] for event in events_of(order) if event.type == "note"]
    assert "ab[31m" in notes
    assert not any(len(text) > 1000 for text in notes)
    assert next(event for event in events_of(order) if event.body.get("text") == "old").at.year >= 2024
    assert len(order.latest) <= MAX_METRICS


@pytest.mark.parametrize("folder", ["/etc", "{data}/orders", "{target}/.."])
def test_a_result_in_a_folder_of_the_process_s_own_choice_is_refused(strange, start, data_folder, folder):
    strange(
        "lying",
        *TO_THE_PIPE,
        "import pathlib, time",
        "order = json.loads((job.work.parent / 'order.json').read_text())",
        f"folder = {folder!r}.format(data={str(data_folder)!r}, target=order['target'])",
        "result = {'folder': folder, 'sha256': 'a', 'size': 1, 'files': {'../../db.sqlite3': {'sha256': 'a', 'size': 1}}}",
        "end = {'attempt': 1, 'seq': 99, 'type': 'end', 'status': 'succeeded', 'result': result, 'error': ''}",
        "forge(json.dumps(end).encode() + b'\\n')",
        "time.sleep(60)",
    )
    order = work_off(start("lying"))
    assert order.status == "failed"
    assert "another folder" in order.error
    assert not Artifact.objects.filter(order=order).exists()


def sealed(folder: Path) -> tuple[Path, dict]:
    (folder / "temp").mkdir()
    (folder / "temp" / "model.bin").write_bytes(b"weights")
    target = folder / "target"
    manifest = commit_folder(folder / "temp", target)
    return target, {"folder": str(target), "size": manifest["size"], "sha256": manifest["sha256"], "files": manifest["files"]}


def test_a_true_result_is_taken_from_what_was_sealed(tmp_path):
    target, said = sealed(tmp_path)
    assert checked(said | {"files": {}, "sha256": "", "revision": "7"}, target=target) == said | {"revision": "7"}


def test_a_folder_that_is_not_what_was_sealed_is_refused(tmp_path):
    target, said = sealed(tmp_path)
    manifest = json.loads((target / "manifest.json").read_text())
    for name, change in {
        "a file more": lambda: (target / "more").write_bytes(b"x"),
        "another size": lambda: (target / "model.bin").write_bytes(b"other weights"),
        "a link": lambda: ((target / "model.bin").unlink(), (target / "model.bin").symlink_to("/etc/hostname")),
        "a name in the manifest alone": lambda: (target / "manifest.json").write_text(
            json.dumps(manifest | {"files": manifest["files"] | {"../../secret_key": {"sha256": "a", "size": 1}}})
        ),
        "no manifest": lambda: (target / "manifest.json").unlink(),
    }.items():
        change()
        with pytest.raises((Untrue, ValueError)):
            checked(said, target=target)
        for path in target.iterdir():
            path.unlink()
        (target / "model.bin").write_bytes(b"weights")
        (target / "manifest.json").write_text(json.dumps(manifest))
        assert checked(said, target=target) == said, name


def test_a_result_that_cannot_be_recorded_fails_once_and_is_not_tried_again(acme):
    version = make_version(acme.owner, acme.project, name="Another")
    Order.objects.filter(pk=version.order_id).update(status=Order.Status.QUEUED)
    claimed = claim(str(version.order_id), attempt=1, worker="test")
    Supervisor(claimed).record(status="succeeded", result={"no": "hash"}, error="")
    claimed.refresh_from_db()
    assert (claimed.status, claimed.attempt) == ("failed", 1)
    assert "cannot be recorded (KeyError: 'rows_sha256')" in claimed.error


def test_an_order_that_takes_too_long_is_ended(strange, start, monkeypatch):
    monkeypatch.setattr(KINDS["train"], "time_limit", 1.5)
    strange("slow", "import time", "while True: job.note('still here'); time.sleep(0.2)")
    order = work_off(start("slow"))
    assert (order.status, order.attempt) == ("failed", 1)
    assert order.error.startswith("It took longer than")


@pytest.mark.parametrize("kind", ["dataset", "tokens", "base_model", "build"])
def test_whatever_reads_a_stranger_s_file_has_a_limit(kind):
    assert KINDS[kind].time_limit


def test_a_token_for_the_hub_goes_to_those_alone_who_fetch_from_it(monkeypatch):
    planted = {"HF_TOKEN": "hub", "PIP_INDEX_URL": "https://me:secret@example.com", "HTTPS_PROXY": "http://me:secret@proxy"}
    for name, value in planted.items():
        monkeypatch.setenv(name, value)
    given = {kind: child_environment(KINDS[kind]).items() for kind in KINDS}
    assert planted.items() <= given.pop("base_model")
    assert planted.items() & given.pop("fetch") == {("HTTPS_PROXY", "http://me:secret@proxy")}  # its token comes from a connection
    for kind, environment in given.items():
        assert not planted.items() & environment, kind


def test_what_an_order_drafted_is_thrown_away_when_its_last_worker_is_lost(start):
    order = start()
    Order.objects.filter(pk=order.pk).update(losses=Order.MAX_LOSSES - 1)
    claimed = claim(str(order.pk), attempt=1, worker="gone")
    (claimed.folder / "work").mkdir(parents=True)
    (claimed.folder / "work" / "draft").write_bytes(b"x" * 1000)
    with TestCase.captureOnCommitCallbacks(execute=True):
        assert worker_lost("gone") == [f"{order}: failed"]
    assert not (claimed.folder / "work").exists()


def test_a_download_goes_on_where_an_earlier_registration_stopped(acme, rival):
    first = register(acme.owner, source="hub:someone/model")
    Order.objects.filter(pk=first.order_id).update(status=Order.Status.FAILED)
    again = register(acme.owner, source="hub:someone/model")
    assert first != again
    cache = {KINDS["base_model"].payload(model.order)["cache"] for model in (first, again)}
    assert len(cache) == 1
    foreign = register(rival.owner, source="hub:someone/model")
    assert KINDS["base_model"].payload(foreign.order)["cache"] not in cache


def test_a_result_with_folders_beside_files_of_like_names_is_believed(tmp_path: Path) -> None:
    for name in ("a/x", "a-b", "a.txt"):  # by paths a/x comes first, by names last
        (tmp_path / "temp" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "temp" / name).write_text(name)
    manifest = commit_folder(tmp_path / "temp", tmp_path / "sealed")
    found = checked({"folder": str(tmp_path / "sealed")}, target=tmp_path / "sealed")
    assert found["sha256"] == manifest["sha256"] and set(found["files"]) == {"a/x", "a-b", "a.txt"}

"""What the numbers of a run leave at other places, each written with its own library; and what a run says where one is not told."""

import json
import sqlite3
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from django.core.exceptions import ImproperlyConfigured

from studio.clients.disk import Disk
from studio.clients.holdings import files_of_project, files_of_run
from studio.orders import trackers
from studio.orders.models import Order
from studio.settings import trackers as names_of
from studio.worker.tracking import TITLES, file_name, numbers
from tests.fixtures import work_off
from tests.orders.conftest import events_of

pytestmark = pytest.mark.torch  # the packages are installed beside torch


@pytest.fixture
def told(settings, tmp_path, start, monkeypatch):
    """`told("mlflow", …)` works a run off while these trackers listen; their folders stand in the data folder."""
    settings.DATA_DIR = tmp_path
    for name in ("MLFLOW_TRACKING_URI", "WANDB_API_KEY", "TRACKIO_SERVER_URL", "TRACKIO_SPACE_ID"):
        monkeypatch.delenv(name, raising=False)

    def run(*names: str) -> Order:
        settings.TRACKERS = names
        order = start(max_steps=4)
        work_off(order)
        order.refresh_from_db()
        return order

    return run


def losses(order: Order) -> list[float]:
    return [event.body["loss"] for event in events_of(order) if event.type == "metric" and "loss" in event.body]


def notes(order: Order) -> list[str]:
    return [event.body["text"] for event in events_of(order) if event.type == "note"]


@pytest.mark.django_db(transaction=True)
def test_every_tracker_is_told_each_loss_and_the_settings(told, tmp_path):
    order = told(*TITLES)
    assert order.status == Order.Status.SUCCEEDED and notes(order) == []
    expected = pytest.approx(losses(order))
    kept = tmp_path / "trackers"
    assert tensorboard_losses(kept / "tensorboard") == expected
    assert mlflow_losses(kept / "mlflow") == expected
    assert wandb_losses(kept / "wandb") == expected
    assert trackio_losses(kept / "trackio") == expected
    disk = Disk()
    found = {*files_of_run(order.run, disk), *files_of_project(order.run.project, disk)}
    left = [path for path in kept.rglob("*") if not path.is_dir() and not any(path.is_relative_to(each) for each in found)]
    (experiment,) = (path for path in left if not path.is_symlink())  # others point into the folder of the run
    assert experiment.match("mlflow/*/meta.yaml")  # which goes with its last run
    assert not list(order.folder.parent.glob("*-told"))


def tensorboard_losses(folder: Path) -> list[float]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (run,) = folder.glob("*/*")
    read = EventAccumulator(str(run))
    read.Reload()
    assert b"max_steps: 4" in read.Tensors("settings")[0].tensor_proto.string_val[0]
    return [each.value for each in read.Scalars("loss")]


def mlflow_losses(folder: Path) -> list[float]:
    (run,) = {path.parent.parent for path in folder.glob("*/*/metrics/loss")}
    assert (run / "params" / "max_steps").read_text() == "4"
    assert "status: 3" in (run / "meta.yaml").read_text()  # finished
    return [float(line.split()[1]) for line in (run / "metrics" / "loss").read_text().splitlines()]


def wandb_losses(folder: Path) -> list[float]:
    from wandb.proto.wandb_internal_pb2 import Record

    (file,) = folder.glob("wandb/offline-run-*/*.wandb")
    found = []
    for data in leveldb_records(file.read_bytes()):
        record = Record.FromString(data)
        items = {item.key or item.nested_key[0]: json.loads(item.value_json) for item in record.history.item}
        if "loss" in items:
            found.append(items["loss"])
    return found


def leveldb_records(content: bytes) -> Iterator[bytes]:
    """The records of LevelDB's log format, in which W&B keeps what it has not sent, after 7 bytes of its own."""
    place, record = 7, b""
    while place < len(content):
        left = 32768 - place % 32768
        if left < 7:
            place += left
            continue
        _, length, part = struct.unpack_from("<IHB", content, place)
        record += content[place + 7 : place + 7 + length]
        place += 7 + length
        if part in (1, 4):  # whole, or the last part of it
            yield record
            record = b""


def trackio_losses(folder: Path) -> list[float]:
    (file,) = folder.glob("*.db")
    with sqlite3.connect(file) as database:
        rows = database.execute("select metrics from metrics order by step, id").fetchall()
    return [metrics["loss"] for (text,) in rows if "loss" in (metrics := json.loads(text))]


@pytest.mark.django_db(transaction=True)
def test_a_server_that_does_not_answer_costs_a_note_and_nothing_else(told, monkeypatch):
    monkeypatch.setattr(trackers, "END_GRACE", 1.0)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    order = told("mlflow")
    assert order.status == Order.Status.SUCCEEDED
    assert notes(order) and notes(order)[0].startswith("MLflow was not told")


@pytest.mark.django_db(transaction=True)
def test_a_package_that_is_missing_is_named(told, tmp_path, monkeypatch):
    (tmp_path / "tensorboard").mkdir()
    (tmp_path / "tensorboard" / "__init__.py").write_text("raise ModuleNotFoundError(\"No module named 'tensorboard'\")")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    order = told("tensorboard")
    assert order.status == Order.Status.SUCCEEDED
    assert notes(order) == ["TensorBoard was not told of this run. The package tensorboard is not installed."]


@pytest.mark.django_db(transaction=True)
def test_the_training_is_given_no_trackers_keys_and_trackers_no_secret_of_the_studio(monkeypatch):
    from studio.orders.kinds import KINDS
    from studio.orders.supervising import child_environment

    monkeypatch.setenv("WANDB_API_KEY", "a key")
    monkeypatch.setenv("STUDIO_SECRET_KEY", "a secret")
    assert "WANDB_API_KEY" not in child_environment(KINDS["train"])
    assert trackers.environment()["WANDB_API_KEY"] == "a key" and "STUDIO_SECRET_KEY" not in trackers.environment()


def test_a_name_that_is_no_tracker_is_refused_at_the_start():
    assert names_of(" MLflow, tensorboard ") == ("mlflow", "tensorboard") and names_of("") == ()
    with pytest.raises(ImproperlyConfigured, match="does not know neptune"):
        names_of("neptune")


def test_only_finite_numbers_are_told_under_harmless_names():
    event = {"seq": 4, "step": 2, "total": 9, "loss": 1.5, "learning_rate": 0, "bad": None, "flag": True, "a:b\n*": 2, "text": "secret"}
    assert numbers(event) == {"loss": 1.5, "learning_rate": 0.0, "a_b__": 2.0}
    assert file_name("../../etc / Acme\x00") == "etc - Acme" and file_name("///") == "adapter-studio"


def test_the_studio_starts_without_any_of_the_packages():
    code = "import studio.worker.tracking, sys; print({'mlflow', 'wandb', 'tensorboard', 'trackio'} & sys.modules.keys())"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"

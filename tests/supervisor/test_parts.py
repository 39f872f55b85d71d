"""The parts of the supervisor that can be tried alone: what is printed, where trainings run, which addresses are refused."""

import io
import os
import socket
from pathlib import Path

import pytest

from studio.errors import UserError
from studio.supervisor.listener import base_url, listen
from studio.supervisor.logs import Log, clean
from studio.supervisor.processes import pause_after
from studio.supervisor.slots import NO_GPU, training_slots, visible_gpus
from studio.supervisor.sockets import LONGEST_SOCKET_PATH, make_private, redis_url, socket_folder


def test_a_line_says_when_who_and_what() -> None:
    stream = io.StringIO()
    Log(stream).line("web", "hello")
    assert stream.getvalue()[8:] == " web      hello\n"


def test_names_are_coloured_on_a_terminal_only() -> None:
    stream = io.StringIO()
    Log(stream, colour=True).line("web", "hello")
    assert "\x1b[36mweb     \x1b[0m hello" in stream.getvalue()


def test_a_log_whose_terminal_is_gone_goes_on() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    terminal = os.fdopen(writing, "w")
    log = Log(terminal)
    log.line("web", "one")
    log.line("web", "two")
    with pytest.raises(BrokenPipeError):
        terminal.close()


@pytest.mark.parametrize(
    ("written", "shown"),
    [
        ("\x1b[2J\x1b[31mred\x1b[0m", "red"),
        ("\x1b]0;new title\x07text", "]0;new titletext"),
        ("redis://:s3cret@host:6379/0", "redis://:***@host:6379/0"),
        ("postgres://ana:s3cret@host/db", "postgres://ana:***@host/db"),
        ("Authorization: Bearer as_abc123 sent", "Authorization: Bearer *** sent"),
        ("für\t東京", "für\t東京"),
    ],
)
def test_terminal_codes_and_passwords_are_taken_out(written: str, shown: str) -> None:
    assert clean(written) == shown


def test_pauses_grow_to_half_a_minute() -> None:
    assert [pause_after(failures) for failures in (1, 2, 3, 20)] == [0.2, 0.4, 0.8, 30.0]


def test_every_gpu_is_a_slot_and_a_machine_without_one_has_a_cpu_slot() -> None:
    assert training_slots(wanted=None, gpus=["0", "1"]) == ["0", "1"]
    assert training_slots(wanted=None, gpus=[]) == [NO_GPU]
    assert training_slots(wanted=1, gpus=["0", "1"]) == ["0"]
    assert training_slots(wanted=2, gpus=[]) == [NO_GPU, NO_GPU]
    assert training_slots(wanted=0, gpus=["0"]) == []


@pytest.mark.parametrize(("wanted", "sentence"), [(3, "two trainings cannot share one"), (-1, "cannot be negative")])
def test_more_workers_than_gpus_are_refused(wanted: int, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        training_slots(wanted=wanted, gpus=["0", "1"])


def test_gpus_that_somebody_chose_are_heeded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2, 5")
    assert visible_gpus() == ["2", "5"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert visible_gpus() == []


def test_a_free_port_can_be_taken() -> None:
    with listen(host="127.0.0.1", port=0) as listener:
        assert base_url(listener) == f"http://127.0.0.1:{listener.getsockname()[1]}"
        assert listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_a_busy_port_is_told_before_anything_starts() -> None:
    with listen(host="127.0.0.1", port=0) as first:
        port = first.getsockname()[1]
        with pytest.raises(UserError, match=f"Port {port} is in use already.*--port {port + 1}"):
            listen(host="127.0.0.1", port=port)


@pytest.mark.parametrize(("host", "port"), [("203.0.113.7", 8000), ("127.0.0.1", 99999), ("no such host", 8000)])
def test_an_address_that_this_machine_does_not_have_is_refused(host: str, port: int) -> None:
    with pytest.raises(UserError, match=r"--host|--port"):
        listen(host=host, port=port)


def test_sockets_stay_in_the_data_folder_unless_its_name_is_too_long(tmp_path: Path) -> None:
    assert redis_url(Path("/srv/studio")) == "unix:///srv/studio/run/redis.sock"
    deep = tmp_path / ("d" * 120)
    assert len(bytes(socket_folder(deep) / "engine.sock")) <= LONGEST_SOCKET_PATH
    assert socket_folder(deep) != socket_folder(tmp_path / ("e" * 120))


def test_a_folder_that_is_a_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "run").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="is a link"):
        make_private(tmp_path / "run")

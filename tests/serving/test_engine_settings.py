"""Which engine answers is set by the environment, refused where it is mistyped, and reaches the process that answers."""

import asyncio
import os
import subprocess
import sys
from argparse import ArgumentParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from studio.serving.engines.choosing import Choosing, add_options, chosen
from studio.serving.engines.vllm import VLLM
from studio.supervisor.programs import Place, engine
from tests.serving.vllm_machine import gpu_machine

OTHER: Any = SimpleNamespace(name="other")
WORDS = "from django.conf import settings; print('\\n'.join(settings.ENGINE_WORDS))"


def settings_with(tmp_path: Path, **set_to: str) -> "subprocess.CompletedProcess[str]":
    environment = {**os.environ, **set_to, "STUDIO_DATA_DIR": str(tmp_path), "DJANGO_SETTINGS_MODULE": "studio.settings"}
    return subprocess.run([sys.executable, "-c", WORDS], env=environment, capture_output=True, text=True, check=False)


def test_what_is_set_reaches_the_process_that_answers(tmp_path):
    said = settings_with(tmp_path, STUDIO_ENGINE="vLLM", STUDIO_VLLM_URLS="http://127.0.0.1:8001/, http://gpu:8000", STUDIO_VLLM_COMMAND="")
    place = Place(tmp_path, "unix://redis.sock", 3, ("0",), tuple(said.stdout.splitlines()))
    parser = ArgumentParser()
    add_options(parser)
    options, _ = parser.parse_known_args(engine(place).command)
    assert (options.engine, options.vllm_url, options.vllm_command) == ("vllm", ["http://127.0.0.1:8001", "http://gpu:8000"], "")


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("STUDIO_ENGINE", "vlm", "must be one of auto, llamacpp, vllm, not 'vlm'"),
        ("STUDIO_SERVING_CONTEXT", "8k", "must be a number of tokens from 512 to 1048576, not '8k'"),
        ("STUDIO_SERVING_CONTEXT", "100", "must be a number of tokens from 512 to 1048576, not '100'"),
        ("STUDIO_VLLM_URLS", "gpu:8000", "must hold addresses such as http://127.0.0.1:8001, not 'gpu:8000'"),
    ],
)
def test_what_is_mistyped_is_refused_with_what_there_is(tmp_path, name, value, words):
    said = settings_with(tmp_path, **{name: value})
    assert said.returncode
    assert words in said.stderr


@pytest.mark.parametrize(
    ("words", "with_gpu", "kind"),
    [
        ([], False, OTHER),
        ([], True, Choosing),
        (["--vllm-command="], True, OTHER),
        (["--vllm-url=http://gpu:8000"], False, Choosing),
        (["--engine=llamacpp"], True, OTHER),
        (["--engine=vllm"], True, VLLM),
    ],
)
def test_vllm_answers_where_it_is_set_up_or_can_be_started(tmp_path, monkeypatch, words, with_gpu, kind):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    for name, value in gpu_machine(tmp_path).items() if with_gpu else [("PATH", "/nowhere")]:
        monkeypatch.setenv(name, value)
    parser = ArgumentParser()
    add_options(parser)

    async def choose() -> Any:
        return chosen(parser.parse_args(words), lambda: OTHER)

    found = asyncio.run(choose())
    assert found is kind if kind is OTHER else isinstance(found, kind)

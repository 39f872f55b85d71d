"""llama.cpp at our fingertips: what it says of a file, and that its server ends."""

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from studio.errors import UserError
from studio.ml import llamacpp
from studio.ml.gguf.exporting import export

ROOT = Path(__file__).parents[2]
LET_GO_AT_ONCE = """
import sys
from studio.ml.chatting import start_server
from studio.ml.llamacpp import rendered

model, folder = sys.argv[1:]
for number in range(40):
    start_server(model, [], context=256, at_once=1, socket=f"{folder}/{number}.sock")
    rendered(model, [])
"""


def test_a_server_of_llamacpp_that_is_let_go_of_at_once_ends(tiny_model: Path, tmp_path: Path) -> None:
    export(base=tiny_model, adapter=None, quantization="f16", target=tmp_path / "m.gguf", name="tiny")
    with tempfile.TemporaryDirectory() as short:
        command = [sys.executable, "-c", LET_GO_AT_ONCE, str(tmp_path / "m.gguf"), short]
        subprocess.run(command, check=True, cwd=ROOT, timeout=60)


def test_llamacpp_speaks_of_a_file(tiny_model: Path, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    export(base=tiny_model, adapter=None, quantization="f16", target=path, name="tiny")
    with llamacpp.Model(path, context=256) as model:
        ids = model.tokenize("Hello 123 wörld<|im_end|>")
        assert ids == Tokenizer.from_file(str(tiny_model / "tokenizer.json")).encode("Hello 123 wörld<|im_end|>").ids
        assert model.text(ids) == "Hello 123 wörld" and model.ends(ids[-1]) and not model.ends(ids[0])
        first = model.logits(ids * 15)  # longer than one batch
        assert first.shape == (len(ids) * 15, 500) and np.array_equal(first[:3], model.logits(ids * 15)[:3])
        answer = model.generate(ids, count=5)
        assert answer[0] == int(model.logits(ids)[-1].argmax()) and len(answer) <= 5
        with pytest.raises(ValueError, match="do not fit"):
            model.logits(ids * 100)
    assert llamacpp.rendered(path, [[{"role": "user", "content": "Hi"}]]) == ["<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"]
    (tmp_path / "not.gguf").write_bytes(b"GGUF nonsense")
    with pytest.raises(UserError, match="could not load"):
        llamacpp.Model(tmp_path / "not.gguf")

"""Answers one request about a GGUF in a process of its own, locked in before the file is opened: a crash in C++ ends it and nothing else.

`python -m studio.ml.gguf.answering REQUEST.json FOLDER` is what `studio.ml.gguf.asking` runs. No torch, no Django.
"""

import importlib
import json
import os
import sys
from pathlib import Path
from typing import Any

from studio.errors import UserError
from studio.ml import sandbox
from studio.ml.llamacpp import Model, library, rendered
from studio.training.measuring import peak_memory

ANSWER, LOGITS = "answer.json", "logits.f32"


def answer(request: dict[str, Any], folder: Path) -> dict[str, Any]:
    """What the file says to one request; logits go to `folder`/LOGITS as rows of float32, one after another.

    Keys of `request`: gguf, adapter (a GGUF added to it, or nothing), threads, context, texts (to tokenize, with the names of special
    tokens read as such and as letters), chats (to render), sequences (token ids to take logits of), prompts (token ids to go on from),
    count (tokens of an answer), ends (token ids that should end an answer).
    """
    path = Path(request["gguf"])
    adapter = Path(request["adapter"]) if request["adapter"] else None
    with Model(path, adapter=adapter, threads=request["threads"], context=request["context"]) as model:
        result: dict[str, Any] = {"vocabulary": model.vocabulary}
        result["texts"] = [model.tokenize(text) for text in request["texts"]]
        result["letters"] = [model.tokenize(text, special=False) for text in request["texts"]]
        result["ends"] = [model.ends(number) for number in request["ends"]]
        with (folder / LOGITS).open("wb") as file:
            for ids in request["sequences"]:
                model.logits(ids).tofile(file)
        result["answers"] = [model.generate(ids, count=request["count"]) for ids in request["prompts"]]
        result["tokens_per_second"] = model.written / model.writing_seconds if model.writing_seconds else 0.0
        result["prompt_tokens_per_second"] = model.read / model.reading_seconds if model.reading_seconds else 0.0
        result["load_seconds"] = model.load_seconds
        result["memory"] = peak_memory()  # before the server of the template loads the file once more
        prompts = rendered(path, request["chats"], folder=Path()) if request["chats"] else []
        result["chats"] = [model.tokenize(prompt, begin=True) for prompt in prompts]
    return result


def main(request_file: Path, folder: Path) -> None:
    """Reads the request, gives up all rights but those it needs, and only then opens the file."""
    request = json.loads(request_file.read_text())
    library()
    importlib.import_module("xllamacpp")  # what is read now need not be readable later
    os.chdir(folder)
    files = [Path(request[key]) for key in ("gguf", "adapter") if request[key]]
    held = sandbox.enter(folder=folder, reads=files, bounds=sandbox.Bounds(**request["bounds"]), parent=request["parent"])
    try:
        result = answer(request, folder)
    except UserError as error:
        result = {"refused": error.message}
    (folder / ANSWER).write_text(json.dumps(result | {"sandbox": held}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))

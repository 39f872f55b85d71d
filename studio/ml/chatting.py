"""A model that answers, in this very process, by llama.cpp: for whoever needs many answers and no page. No torch.

Adapters are chosen for each question. Three rules keep them apart: every adapter is named with an explicit scale, the host's prompt
cache is off (it is not keyed by adapter), and threads never exceed half the cores (spinning threads starve a training).
"""

import json
import os
import tempfile
from pathlib import Path
from typing import Any

from studio.errors import UserError
from studio.ml.gguf.serving import prepare
from studio.ml.llamacpp import wait_for_loop


def start_server(model: str, adapters: list[str], *, context: int, at_once: int, socket: str, batch: int = 0) -> Any:
    """llama.cpp with a model and the adapters that it can put on. `context` is for each of `at_once` conversations side by side.

    A prompt is read `batch` tokens at a time, between which a stop is heard; 0 leaves that to llama.cpp.
    """
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = model
    params.n_ctx = context * at_once  # llama.cpp shares it out among them
    params.n_parallel = at_once
    if batch:
        params.n_batch = params.n_ubatch = batch
    params.cache_ram_mib = 0
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = max(1, (os.cpu_count() or 2) // 2)
    params.verbosity = 0
    params.ui = False
    # Its own HTTP server listens on a private socket instead of a port.
    params.hostnames = [socket]
    params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(path, 0.0) for path in adapters]
    server = xllamacpp.Server(params)
    wait_for_loop(Path(socket))
    return server


def refusal(problem: dict[str, Any]) -> str:
    """What llama.cpp refuses, in the studio's words."""
    if problem.get("type") == "exceed_context_size_error":
        tokens, context = problem.get("n_prompt_tokens"), problem.get("n_ctx")
        return f"The conversation has {tokens} tokens, and {context} fit. Shorten it, or start a new one."
    return f"The model could not answer: {str(problem.get('message', ''))[:300]}"


class Chatter:
    """A base model, with an adapter on it or none, that is asked one question after another."""

    def __init__(self, *, base: Path, adapter: Path | None, cache: Path, context: int):
        files = prepare(base=base, adapter=adapter, cache=cache)
        adapters = [str(files.adapter)] if files.adapter else []
        self.sockets = tempfile.TemporaryDirectory(prefix="studio-llama-")
        socket = os.path.join(self.sockets.name, "s.sock")
        self.lora = [{"id": 0, "scale": 1.0}] if adapters else []
        self.server = start_server(str(files.model), adapters, context=context, at_once=1, socket=socket)

    def answer(self, messages: list[dict[str, str]], *, max_tokens: int, temperature: float, seed: int) -> str:
        """Raises UserError where llama.cpp refuses, such as for a conversation that is too long."""
        pieces: list[str] = []
        refused: list[str] = []

        def on_chunk(chunk: Any) -> bool:
            told = chunk if isinstance(chunk, dict) else json.loads(chunk)
            if problem := told.get("error"):
                refused.append(refusal(problem))
            pieces.extend(choice.get("delta", {}).get("content") or "" for choice in told.get("choices", []))
            return False

        settings = {"max_tokens": max_tokens, "temperature": temperature, "seed": seed, "stream": True, "lora": self.lora}
        self.server.handle_chat_completions({"messages": messages, **settings}, on_chunk)
        if refused:
            raise UserError(refused[0])
        return "".join(pieces)

#!/usr/bin/env python3
"""Behaves as `vllm serve`: the options, the HTTP, what it refuses, and how it keeps prefixes, after vLLM 0.11. Foreign software's stand-in.

Answers say who speaks: "<model's name> 0 1 2 …". A folder in VLLM_STANDIN_GPU is the GPU: each server leaves there what it takes.
"""

import argparse
import asyncio
import atexit
import hashlib
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import uvicorn

PAUSE = float(os.environ.get("VLLM_STANDIN_PAUSE", "0.002"))
GPU = os.environ.get("VLLM_STANDIN_GPU", "")
TOTAL = 16 << 30
BLOCK = 4


class Refused(Exception):
    def __init__(self, status: int, message: str, kind: str = "BadRequestError", param: str | None = None):
        super().__init__(message)
        self.status, self.body = status, {"error": {"message": message, "type": kind, "param": param, "code": status}}


class Server:
    def __init__(self, options: argparse.Namespace):
        self.options = options
        self.names = options.served_model_name or [options.model]
        self.adapters: dict[str, str] = {}
        self.kept: set[str] = set()
        self.running = self.aborted = self.finished = 0
        self.heard: list[dict[str, Any]] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        try:
            await self.route(scope, receive, send)
        except Refused as refused:
            await reply(send, refused.status, refused.body)

    async def route(self, scope: Any, receive: Any, send: Any) -> None:
        at = (scope["method"], scope["path"])
        body = await read(receive) if scope["method"] == "POST" else {}
        key = self.options.api_key
        if key and at[1].startswith("/v1") and dict(scope["headers"]).get(b"authorization") != f"Bearer {key}".encode():
            await reply(send, 401, {"error": "Unauthorized"})
        elif at == ("GET", "/health"):
            await reply(send, 200, None)
        elif at == ("GET", "/v1/models"):
            await reply(send, 200, {"object": "list", "data": self.cards()})
        elif at == ("GET", "/metrics"):
            figures = {"running": self.running, "aborted": self.aborted, "finished": self.finished, "heard": self.heard}
            await reply(send, 200, figures)
        elif at == ("POST", "/tokenize"):
            self.known(body)
            text = body["prompt"] if "prompt" in body else template(body["messages"])
            await reply(send, 200, {"tokens": tokens(text), "count": len(tokens(text)), "max_model_len": self.options.max_model_len})
        elif at == ("POST", "/v1/load_lora_adapter") and os.environ.get("VLLM_ALLOW_RUNTIME_LORA_UPDATING"):
            self.load(body)
            await reply(send, 200, f"Success: LoRA adapter '{body['lora_name']}' added successfully.")
        elif at == ("POST", "/v1/unload_lora_adapter") and os.environ.get("VLLM_ALLOW_RUNTIME_LORA_UPDATING"):
            if self.adapters.pop(body["lora_name"], None) is None:
                raise Refused(404, f"The lora adapter '{body['lora_name']}' cannot be found.", "NotFoundError")
            await reply(send, 200, f"Success: LoRA adapter '{body['lora_name']}' removed successfully.")
        elif at in (("POST", "/v1/chat/completions"), ("POST", "/v1/completions")):
            await self.answer(body, receive, send, chat=at[1].startswith("/v1/chat"))
        elif at == ("POST", "/v1/embeddings"):
            self.known(body)
            raise Refused(400, "The model does not support Embeddings API")
        else:
            await reply(send, 404, {"detail": "Not Found"})

    def cards(self) -> list[dict[str, Any]]:
        bases = [
            {"id": name, "object": "model", "root": self.options.model, "parent": None, "max_model_len": self.options.max_model_len}
            for name in self.names
        ]
        return bases + [
            {"id": name, "object": "model", "root": root, "parent": self.names[0], "max_model_len": None}
            for name, root in self.adapters.items()
        ]

    def known(self, body: dict[str, Any]) -> None:
        if body.get("model") not in (*self.names, *self.adapters):
            raise Refused(404, f"The model `{body.get('model')}` does not exist.", "NotFoundError", "model")

    def load(self, body: dict[str, Any]) -> None:
        name, folder = body["lora_name"], Path(body["lora_path"])
        if name in self.adapters:
            raise Refused(400, f"The lora adapter '{name}' has already been loaded.", "InvalidUserInput")
        if not self.options.enable_lora:
            raise Refused(500, "LoRA is not enabled.", "InternalServerError")
        try:
            config = json.loads((folder / "adapter_config.json").read_bytes())
        except OSError as error:
            raise Refused(404, f"No adapter found for {folder}", "NotFoundError") from error
        if config.get("modules_to_save"):
            raise Refused(500, "vLLM only supports modules_to_save being None.", "InternalServerError")
        if config.get("use_dora"):
            raise Refused(500, "vLLM does not yet support DoRA.", "InternalServerError")
        if config["r"] > self.options.max_lora_rank:
            rank = self.options.max_lora_rank
            raise Refused(500, f"LoRA rank {config['r']} is greater than max_lora_rank {rank}.", "InternalServerError")
        self.adapters[name] = str(folder)

    async def answer(self, body: dict[str, Any], receive: Any, send: Any, *, chat: bool) -> None:
        self.known(body)
        if body.get("tools") and not self.options.enable_auto_tool_choice:
            raise Refused(400, '"auto" tool choice requires --enable-auto-tool-choice and --tool-call-parser to be set')
        if "cache_salt" in body and (not isinstance(body["cache_salt"], str) or not body["cache_salt"]):
            raise Refused(400, "Parameter 'cache_salt' must be a non-empty string if provided.", param="cache_salt")
        if not 0 <= body.get("temperature", 1) <= 2:
            raise Refused(400, "temperature must be in [0, 2]", param="temperature")
        prompt = template(body["messages"]) if chat else body["prompt"]
        asked, most = tokens(prompt), body.get("max_tokens", 16)
        if len(asked) + most > self.options.max_model_len:
            longest = self.options.max_model_len
            raise Refused(
                400, f"This model's maximum context length is {longest} tokens. However, you requested {len(asked) + most} tokens."
            )
        self.heard.append({name: body.get(name) for name in ("model", "cache_salt", "temperature")})
        cached = self.remembered(body, asked)
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})
        watcher = asyncio.create_task(gone(receive))
        self.running += 1
        try:
            for number in range(most):
                if watcher.done():
                    self.aborted += 1
                    return
                text = body["model"] if number == 0 else f" {number}"
                piece = {"delta": {"content": text}} if chat else {"text": text}
                await event(send, {"id": "x", "choices": [{"index": 0, "finish_reason": None, **piece}]})
                await asyncio.sleep(PAUSE)
            last = {"delta": {}} if chat else {"text": ""}
            await event(send, {"id": "x", "choices": [{"index": 0, "finish_reason": "length", **last}]})
            if (body.get("stream_options") or {}).get("include_usage"):
                usage: dict[str, Any] = {"prompt_tokens": len(asked), "completion_tokens": most, "total_tokens": len(asked) + most}
                if self.options.enable_prompt_tokens_details:
                    usage["prompt_tokens_details"] = {"cached_tokens": cached}
                await event(send, {"id": "x", "choices": [], "usage": usage})
            await send({"type": "http.response.body", "body": b"data: [DONE]\n\n"})
            self.finished += 1
        finally:
            self.running -= 1
            watcher.cancel()

    def remembered(self, body: dict[str, Any], asked: list[int]) -> int:
        """Blocks are keyed by the tokens so far with the adapter's name, and the first of them with the salt, as vLLM does."""
        adapter = [body["model"]] if body["model"] in self.adapters else []
        parent, cached = "", 0
        for begin in range(0, len(asked) - len(asked) % BLOCK, BLOCK):
            extra = [*adapter, *([body["cache_salt"]] if begin == 0 and body.get("cache_salt") else [])]
            parent = hashlib.sha256(json.dumps([parent, asked[begin : begin + BLOCK], extra]).encode()).hexdigest()
            if parent in self.kept and cached == begin:
                cached += BLOCK
            self.kept.add(parent)
        return cached


async def gone(receive: Any) -> None:
    while (await receive())["type"] != "http.disconnect":
        continue


def tokens(text: str) -> list[int]:
    return [sum(word.encode()) for word in text.split()]


def template(messages: list[dict[str, str]]) -> str:
    return " ".join(f"{message['role']} {message['content']}" for message in messages)


async def event(send: Any, body: dict[str, Any]) -> None:
    await send({"type": "http.response.body", "body": f"data: {json.dumps(body)}\n\n".encode(), "more_body": True})


async def reply(send: Any, status: int, body: Any) -> None:
    await send({"type": "http.response.start", "status": status, "headers": [(b"content-type", b"application/json")]})
    await send({"type": "http.response.body", "body": b"" if body is None else json.dumps(body).encode()})


async def read(receive: Any) -> dict[str, Any]:
    data, more = b"", True
    while more:
        message = await receive()
        data, more = data + message.get("body", b""), message.get("more_body", False)
    found: dict[str, Any] = json.loads(data)
    return found


def taken() -> int:
    return sum(int(file.read_text() or 0) for file in Path(GPU).iterdir())


def take_memory(share: float) -> None:
    """What vLLM does before it loads anything, and gives back when it ends."""
    if not GPU:
        return
    free = TOTAL - taken()
    if free < share * TOTAL:
        sys.exit(
            f"ValueError: Free memory on device ({free >> 20}/{TOTAL >> 20} MiB) on startup is less than desired GPU memory utilization"
        )
    mine = Path(GPU, str(os.getpid()))
    mine.write_text(str(int(share * TOTAL)))
    atexit.register(lambda: mine.unlink(missing_ok=True))


def main() -> None:
    parser = argparse.ArgumentParser(prog="vllm")
    parser.add_argument("verb", choices=["serve"])
    parser.add_argument("model")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--uds")
    parser.add_argument("--api-key")
    parser.add_argument("--served-model-name", nargs="+")
    parser.add_argument("--enable-lora", action="store_true")
    parser.add_argument("--max-loras", type=int, default=1)
    parser.add_argument("--max-cpu-loras", type=int)
    parser.add_argument("--max-lora-rank", type=int, choices=[1, 8, 16, 32, 64, 128, 256, 320, 512], default=16)
    parser.add_argument("--max-model-len", type=int, default=2048)
    parser.add_argument("--gpu-memory-utilization", type=float, default=0.9)
    parser.add_argument("--enable-prompt-tokens-details", action="store_true")
    parser.add_argument("--enable-auto-tool-choice", action="store_true")
    parser.add_argument("--generation-config", default="auto")
    parser.add_argument("--uvicorn-log-level", default="info")
    options = parser.parse_args()
    if json.loads(Path(options.model, "config.json").read_bytes()).get("architectures") == ["Strange"]:
        sys.exit("ValueError: Model architectures ['Strange'] are not supported for now.")
    take_memory(options.gpu_memory_utilization)
    time.sleep(float(os.environ.get("VLLM_STANDIN_START", "0")))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    where = {"uds": options.uds} if options.uds else {"host": "127.0.0.1", "port": options.port}
    uvicorn.run(Server(options), lifespan="off", log_level="error", **where)  # type: ignore[arg-type]


if __name__ == "__main__":
    main()

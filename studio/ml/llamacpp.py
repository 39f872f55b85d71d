"""llama.cpp at our fingertips: a GGUF's tokens, logits and prompts, through the C functions that xllamacpp exports. No torch, no Django.

The C structs that are passed by value grow from release to release; only their first fields, which have been the same for years, are
touched, and their defaults are checked before anything is loaded.
"""

import ctypes
import functools
import http.client
import importlib.util
import json
import os
import socket
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from studio.errors import UserError

BATCH = 128
"""Tokens that are decoded at once."""
STRUCT_BYTES = 4096
"""Room for llama.cpp's parameter structs, whatever their size."""

WARNING, ERROR = 3, 4
"""ggml_log_level."""

Logits = npt.NDArray[np.float32]


class _Params(ctypes.Structure):
    """llama_model_params or llama_context_params: opaque but for its first four numbers."""

    _fields_ = [("numbers", ctypes.c_uint32 * 4), ("rest", ctypes.c_uint64 * ((STRUCT_BYTES - 16) // 8))]


class _Batch(ctypes.Structure):
    """llama_batch."""

    _fields_ = [
        ("n_tokens", ctypes.c_int32),
        ("token", ctypes.POINTER(ctypes.c_int32)),
        ("embd", ctypes.c_void_p),
        ("pos", ctypes.POINTER(ctypes.c_int32)),
        ("n_seq_id", ctypes.POINTER(ctypes.c_int32)),
        ("seq_id", ctypes.POINTER(ctypes.POINTER(ctypes.c_int32))),
        ("logits", ctypes.POINTER(ctypes.c_int8)),
    ]


CONTEXT_DEFAULTS = (512, 2048, 512, 1)
"""n_ctx, n_batch, n_ubatch, n_seq_max of llama_context_default_params()."""
POINTER, INT, STRING, BOOL = ctypes.c_void_p, ctypes.c_int32, ctypes.c_char_p, ctypes.c_bool
SIGNATURES: dict[str, tuple[Any, list[Any]]] = {
    "llama_backend_init": (None, []),
    "llama_log_set": (None, [POINTER, POINTER]),
    "llama_model_default_params": (_Params, []),
    "llama_context_default_params": (_Params, []),
    "llama_model_load_from_file": (POINTER, [STRING, _Params]),
    "llama_init_from_model": (POINTER, [POINTER, _Params]),
    "llama_adapter_lora_init": (POINTER, [POINTER, STRING]),
    "llama_set_adapters_lora": (INT, [POINTER, ctypes.POINTER(POINTER), ctypes.c_size_t, ctypes.POINTER(ctypes.c_float)]),
    "llama_set_n_threads": (None, [POINTER, INT, INT]),
    "llama_model_free": (None, [POINTER]),
    "llama_free": (None, [POINTER]),
    "llama_model_get_vocab": (POINTER, [POINTER]),
    "llama_vocab_n_tokens": (INT, [POINTER]),
    "llama_vocab_is_eog": (BOOL, [POINTER, INT]),
    "llama_vocab_get_add_bos": (BOOL, [POINTER]),
    "llama_tokenize": (INT, [POINTER, STRING, INT, ctypes.POINTER(INT), INT, BOOL, BOOL]),
    "llama_token_to_piece": (INT, [POINTER, INT, STRING, INT, INT, BOOL]),
    "llama_get_memory": (POINTER, [POINTER]),
    "llama_memory_clear": (None, [POINTER, BOOL]),
    "llama_batch_init": (_Batch, [INT, INT, INT]),
    "llama_batch_free": (None, [_Batch]),
    "llama_decode": (INT, [POINTER, _Batch]),
    "llama_get_logits_ith": (ctypes.POINTER(ctypes.c_float), [POINTER, INT]),
}


@functools.cache
def library() -> ctypes.CDLL:
    """The shared library inside the package xllamacpp. Calls through it release the GIL."""
    spec = importlib.util.find_spec("xllamacpp")
    folders = list(spec.submodule_search_locations or []) if spec else []
    found = [file for folder in folders for pattern in ("xllamacpp*.so", "xllamacpp*.pyd") for file in sorted(Path(folder).glob(pattern))]
    if not found:
        raise UserError("llama.cpp is not installed on this worker. Install the package xllamacpp and try again.", code="missing_package")
    loaded = ctypes.CDLL(str(found[0]))
    for name, (result, arguments) in SIGNATURES.items():
        function = getattr(loaded, name)
        function.restype, function.argtypes = result, arguments
    return loaded


_complaints: list[str] = []
"""What llama.cpp last said went wrong."""


def _listen(level: int, text: bytes, _: object) -> None:
    """llama.cpp writes hundreds of lines for every file; only warnings and errors are passed on."""
    if level in (WARNING, ERROR):
        line = text.decode(errors="replace").strip()
        sys.stderr.write(f"{line}\n")
        if level == ERROR:
            _complaints.append(line)


_listener = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)(_listen)
"""Kept for as long as llama.cpp may call it."""


def _reason() -> str:
    return " ".join(_complaints[:2])[:300] or "it gave no reason."


class Model:
    """One GGUF, loaded on the CPU, with a context for one conversation. Use it in a `with` block."""

    def __init__(self, path: Path, *, adapter: Path | None = None, threads: int = 1, context: int = 1024):
        """With a GGUF adapter added, if one is given. Raises UserError where llama.cpp refuses a file; its warnings go to stderr."""
        lib = library()
        lib.llama_log_set(ctypes.cast(_listener, POINTER), None)
        lib.llama_backend_init()
        _complaints.clear()
        begun = time.perf_counter()
        self._model = lib.llama_model_load_from_file(os.fsencode(path), lib.llama_model_default_params())
        if not self._model:
            raise UserError(f"llama.cpp could not load the file: {_reason()}", code="not_loaded")
        parameters = lib.llama_context_default_params()
        if tuple(parameters.numbers) != CONTEXT_DEFAULTS:
            raise UserError("This version of xllamacpp is unknown. Install the one that the studio pins.", code="missing_package")
        parameters.numbers[0] = context
        self._context = lib.llama_init_from_model(self._model, parameters)
        if not self._context:
            raise UserError("llama.cpp had too little memory for the file. Free some and try again.", code="not_loaded")
        if adapter:
            self._add(adapter)
        lib.llama_set_n_threads(self._context, threads, threads)
        self._vocabulary = lib.llama_model_get_vocab(self._model)
        self._batch = lib.llama_batch_init(BATCH, 0, 1)
        self.context = context
        self.load_seconds = time.perf_counter() - begun
        self.read, self.reading_seconds = 0, 0.0  # tokens of prompts, and the time they took
        self.written, self.writing_seconds = 0, 0.0  # tokens of answers, and the time they took without their prompts
        self.vocabulary: int = lib.llama_vocab_n_tokens(self._vocabulary)

    def __enter__(self) -> "Model":
        return self

    def __exit__(self, *_: object) -> None:
        lib = library()
        lib.llama_batch_free(self._batch)
        lib.llama_free(self._context)
        lib.llama_model_free(self._model)

    def tokenize(self, text: str, *, special: bool = True, begin: bool = False) -> list[int]:
        """Token ids of a text; `special` reads the names of special tokens as such, `begin` adds what the file says texts begin with."""
        raw = text.encode()
        room = len(raw) + 16
        ids = (INT * room)()
        count: int = library().llama_tokenize(self._vocabulary, raw, len(raw), ids, room, begin, special)
        if count < 0:
            raise RuntimeError(f"llama_tokenize asks for room for {-count} tokens of a text of {len(raw)} bytes")
        return list(ids[:count])

    def text(self, ids: Iterable[int]) -> str:
        """The text of tokens, without special ones."""
        pieces = b""
        for number in ids:
            buffer = ctypes.create_string_buffer(1024)
            length = library().llama_token_to_piece(self._vocabulary, number, buffer, len(buffer), 0, False)
            pieces += buffer.raw[: max(0, length)]
        return pieces.decode(errors="replace")

    def ends(self, number: int) -> bool:
        """True where llama.cpp ends an answer at this token."""
        return bool(library().llama_vocab_is_eog(self._vocabulary, number))

    def logits(self, ids: list[int]) -> Logits:
        """Logits after each token of a text that begins anew, shape (tokens, vocabulary)."""
        if not 0 < len(ids) <= self.context:
            raise ValueError(f"{len(ids)} tokens do not fit into a context of {self.context}")
        self._forget()
        rows = [self._decode(ids[start : start + BATCH], start, every=True) for start in range(0, len(ids), BATCH)]
        return np.concatenate(rows)

    def generate(self, ids: list[int], *, count: int) -> list[int]:
        """The likeliest next tokens, at most `count`; the one that ends the answer stands last."""
        self._forget()
        last = np.empty((0, self.vocabulary), np.float32)
        begun = time.perf_counter()
        for start in range(0, len(ids), BATCH):
            last = self._decode(ids[start : start + BATCH], start, every=False)
        self.read, self.reading_seconds = self.read + len(ids), self.reading_seconds + time.perf_counter() - begun
        answer: list[int] = []
        begun = time.perf_counter()
        while len(answer) < count and len(ids) + len(answer) < self.context:
            answer.append(int(last[-1].argmax()))
            if self.ends(answer[-1]):
                break
            last = self._decode(answer[-1:], len(ids) + len(answer) - 1, every=False)
            self.written += 1
        self.writing_seconds += time.perf_counter() - begun
        return answer

    def _add(self, adapter: Path) -> None:
        lib = library()
        loaded = lib.llama_adapter_lora_init(self._model, os.fsencode(adapter))  # is freed with the model
        adapters, scales = (POINTER * 1)(loaded), (ctypes.c_float * 1)(1.0)
        if not loaded or lib.llama_set_adapters_lora(self._context, adapters, 1, scales) != 0:
            raise UserError(f"llama.cpp could not load the adapter: {_reason()}", code="not_loaded")

    def _forget(self) -> None:
        library().llama_memory_clear(library().llama_get_memory(self._context), True)

    def _decode(self, ids: list[int], start: int, *, every: bool) -> Logits:
        """Decodes up to BATCH tokens from position `start`; logits of every one, or of the last."""
        batch = self._batch
        batch.n_tokens = len(ids)
        for index, number in enumerate(ids):
            if not 0 <= number < self.vocabulary:
                raise ValueError(f"The token {number} is not in a vocabulary of {self.vocabulary}")
            batch.token[index], batch.pos[index] = number, start + index
            batch.n_seq_id[index], batch.seq_id[index][0] = 1, 0
            batch.logits[index] = every or index == len(ids) - 1
        status = library().llama_decode(self._context, batch)
        if status != 0:
            raise RuntimeError(f"llama_decode answered {status}")
        wanted = range(len(ids)) if every else [len(ids) - 1]
        rows = [np.ctypeslib.as_array(library().llama_get_logits_ith(self._context, index), (self.vocabulary,)) for index in wanted]
        return np.stack(rows)  # a copy: llama.cpp reuses its own


class _UnixConnection(http.client.HTTPConnection):
    """HTTP over a socket in a folder of ours, so that no port is opened."""

    def __init__(self, path: Path):
        super().__init__("localhost", timeout=60)
        self.path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self.path))


def rendered(path: Path, chats: list[list[dict[str, str]]], *, folder: Path | None = None) -> list[str]:
    """The prompts that llama.cpp makes of conversations with the template in the file, up to where the answer begins.

    Its template engine is only reachable through its server, which is started on a socket in a folder of its own inside `folder`, the
    system's for temporary files without. A socket's path must be shorter than 100 letters, which one below the working folder always is.
    """
    with tempfile.TemporaryDirectory(prefix="llama-", dir=folder) as own:
        address = min(own, os.path.relpath(own), key=len) / Path("llama.sock")
        server = _server(path, address)
        prompts = [
            str(_ask(address, "POST", "/apply-template", {"messages": chat}, to="use the chat template")["prompt"]) for chat in chats
        ]
        del server  # ends its threads and lets go of the socket
    return prompts


def _server(path: Path, address: Path) -> Any:
    import xllamacpp

    parameters: Any = xllamacpp.CommonParams()
    parameters.model.path = str(path)
    parameters.n_ctx = 256
    parameters.n_parallel = 1
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = 1
    parameters.n_threads_http = 1
    parameters.hostnames = [str(address)]
    parameters.warmup = False
    parameters.verbosity = 0
    parameters.cache_ram_mib = 0
    parameters.ui = False
    server = xllamacpp.Server(parameters)
    wait_for_loop(address)
    return server


def wait_for_loop(address: Path) -> None:
    """Until the loop of llama.cpp's server, listening at `address`, works. Call it for each server that may be let go of.

    The server is handed out before its loop begins. Let go of in between, it tells a loop to end that has not begun, and then waits
    without end for the one that begins (one in about a hundred on busy cores). What it has of adapters is told from within the loop.
    """
    _ask(address, "GET", "/lora-adapters", to="tell its adapters")


def _ask(address: Path, method: str, route: str, body: dict[str, Any] | None = None, *, to: str) -> Any:
    """Raises UserError, which says that llama.cpp could not do what it was to do and why."""
    connection = _UnixConnection(address)
    connection.request(method, route, json.dumps(body) if body else None, {"Content-Type": "application/json"})
    response = connection.getresponse()
    answer: Any = json.loads(response.read())
    connection.close()
    if response.status != 200:
        raise UserError(f"llama.cpp could not {to}: {answer.get('error', {}).get('message', response.status)}")
    return answer

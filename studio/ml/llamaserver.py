"""One llama.cpp server in a process of its own: told on its standard input what to load, it listens on a unix socket until that closes.

Prints "ready" once it has loaded xllamacpp, so that a process can be started before anybody needs it, then one line for what it was told:
"listening", or what went wrong. No Django, no torch.
"""

import json
import os
import sys
from typing import Any

from studio.lifeline import die_with_parent


def start(told: dict[str, Any]) -> Any:
    """Raises RuntimeError for what llama.cpp cannot load.

    Three rules keep adapters apart: every request names every adapter with an explicit scale, the host's prompt cache is off (it is not
    keyed by adapter), and threads are no more than the cores that are free (threads that spin starve others).
    """
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = told["model"]
    params.n_ctx = told["context"] * told["slots"]  # llama.cpp shares it out among them
    params.n_parallel = told["slots"]
    params.n_batch = params.n_ubatch = told["batch"]  # whoever leaves while their prompt is read is noticed after a batch
    params.cache_ram_mib = 0
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = told["threads"]
    params.fit_params = False
    params.warmup = False
    params.verbosity = 0
    params.ui = False
    params.hostnames = [told["socket"]]
    params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(path, 0.0) for path in told["adapters"]]
    if told["embedding"]:
        params.embedding = True
        if told["pooling"]:
            params.pooling_type = xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_MEAN
    return xllamacpp.Server(params)


def main() -> None:
    die_with_parent()
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # llama.cpp prints as it likes; only what is told here may go there
    import xllamacpp  # noqa: F401  # what takes time is done before anybody waits

    print("ready", file=out)
    if line := sys.stdin.readline():
        try:
            server = start(json.loads(line))  # noqa: F841  # it answers for as long as it is held
        except RuntimeError as problem:
            print(f"failed: {problem}", file=out)
        else:
            print("listening", file=out)
            sys.stdin.read()
    os._exit(0)  # at once, whatever is being answered


if __name__ == "__main__":
    main()

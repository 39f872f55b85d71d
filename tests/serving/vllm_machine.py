"""A machine with a GPU and vLLM on it, as far as programs can tell, and folders as models and adapters are kept in."""

import json
import os
import struct
import sys
from pathlib import Path
from typing import Any

from tests.serving import vllm_standin

STANDIN = Path(vllm_standin.__file__)


def base_folder(root: Path, name: str, *, size: int = 1000, **config: Any) -> Path:
    folder = root / name
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"], "max_position_embeddings": 64} | config))
    with (folder / "model.safetensors").open("wb") as file:
        file.truncate(size)
    return folder


def adapter_folder(root: Path, name: str, *, tensors: tuple[str, ...] = ("lora_A.weight", "lora_B.weight"), **settings: Any) -> Path:
    folder = root / name
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 8, "lora_alpha": 16} | settings))
    names = [f"base_model.model.model.layers.0.self_attn.q_proj.{each}" if each.startswith("lora_") else each for each in tensors]
    header = {each: {"dtype": "F32", "shape": [1, 1], "data_offsets": [4 * n, 4 * n + 4]} for n, each in enumerate(names)}
    said = json.dumps(header).encode()
    (folder / "adapter_model.safetensors").write_bytes(struct.pack("<Q", len(said)) + said + bytes(4 * len(names)))
    return folder


def gpu_machine(root: Path) -> dict[str, str]:
    """The environment of a machine with 16 GiB on its GPU, and `vllm`.

    `nvidia-smi` counts what living servers have taken of it, and what a file `gpu/run` says that somebody else has.
    """
    memory, tools = root / "gpu", root / "tools"
    memory.mkdir()
    tools.mkdir()
    count = "import os, pathlib\n" + (
        f"alive = [f for f in pathlib.Path({str(memory)!r}).iterdir() if f.name == 'run' or os.path.isdir('/proc/' + f.name)]\n"
        f"print(f'{vllm_standin.TOTAL >> 20}, {{({vllm_standin.TOTAL} - sum(int(f.read_text() or 0) for f in alive)) >> 20}}')\n"
    )
    start = f"import runpy\nrunpy.run_path({str(STANDIN)!r}, run_name='__main__')\n"
    for name, text in (("nvidia-smi", count), ("vllm", start)):
        (tools / name).write_text(f"#!{sys.executable}\n{text}")
        (tools / name).chmod(0o700)
    return {"PATH": f"{tools}{os.pathsep}{os.environ['PATH']}", "VLLM_STANDIN_GPU": str(memory)}

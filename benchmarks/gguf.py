"""From adapter to GGUF: the studio's one pass beside the standard chain, as ratios in one run; and memory whatever the model's size.

    python benchmarks/gguf.py chain --base FOLDER [--adapter FOLDER] --llama-cpp CHECKOUT --tools FOLDER [--types q4_k_m,q5_k_m,q6_k,f16]
    python benchmarks/gguf.py ladder --base FOLDER [--types f16,q8_0,q6_k,q5_k_m,q4_k_m,q3_k_m]
    python benchmarks/gguf.py memory --base FOLDER [--billions 7]

The chain is PEFT's merge_and_unload and save_pretrained, CHECKOUT/convert_hf_to_gguf.py to f16 (or bf16), and FOLDER/llama-quantize with
two threads. Every link and the studio's pass run in processes of their own, one after another, so imports count for both; the converter
needs the package sentencepiece. `--base 1b` makes a random Llama of 1.17 billion weights for the occasion, with the tokenizer of the
folder that `--tokenizer` names; without `--adapter` a random one of rank 16 is made. `ladder` compares several types in one pass with as
many passes. `memory` builds a model of 7 billion weights whose file is sparse.

Wall time is worth what else the machine does meanwhile (`others`); processor time holds on a busy one, too.
"""

import argparse
import json
import math
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PEERS = Path(__file__).resolve().parent / "peers"
sys.path.insert(0, str(ROOT))

TARGETS = {"q4_k_m": 10.0, "q5_k_m": 10.0, "q6_k": 10.0, "f16": 5.0}
"""Times as fast as the chain, by the clock and by processor time."""
LESS_MEMORY = 10.0
FLAT = 600 << 20
"""Bytes of resident memory in which any model is built."""
UNQUANTIZED = ("f32", "f16", "bf16")
RANK, SEED = 16, 0


@dataclass
class Cost:
    """What processes took, one after another."""

    wall: float = 0.0
    cpu: float = 0.0
    peak: int = 0
    """Bytes of resident memory of the largest."""
    files: int = 0
    """Bytes of temporary files."""
    others: float = 0.0
    """Processors that others kept busy meanwhile, on average."""

    def __add__(self, more: "Cost") -> "Cost":
        wall = self.wall + more.wall
        others = (self.others * self.wall + more.others * more.wall) / max(wall, 1e-9)
        return Cost(wall, self.cpu + more.cpu, max(self.peak, more.peak), self.files + more.files, others)


def run(command: list[str], **environment: str) -> Cost:
    """Runs a command to its end; raises SystemExit with its last words where it fails."""
    began, busy = time.perf_counter(), _busy()
    with tempfile.TemporaryFile() as log:
        child = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, **environment})
        peak = 0
        while True:  # a child's ru_maxrss begins with what its parent held, so the kernel's own mark is read
            found, status, usage = os.wait4(child.pid, os.WNOHANG)
            if found:
                break
            peak = max(peak, _high_water(child.pid))
            time.sleep(0.005)
        child.returncode = os.waitstatus_to_exitcode(status)
        if child.returncode:
            log.seek(0)
            sys.exit(f"{' '.join(command)} failed:\n{log.read()[-3000:].decode(errors='replace')}")
    wall, cpu = time.perf_counter() - began, usage.ru_utime + usage.ru_stime
    return Cost(wall, cpu, peak, 0, max(0.0, (_busy() - busy - cpu) / wall))


def _high_water(pid: int) -> int:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:  # it has just ended
        return 0
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024 if "VmHWM:" in status else 0


def _busy() -> float:
    """Seconds that all processors together have worked since the start of the machine."""
    user, nice, system = (int(number) for number in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:4])
    return (user + nice + system) / os.sysconf("SC_CLK_TCK")


def chain(base: Path, adapter: Path, folder: Path, quantization: str, *, checkout: Path, tools: Path) -> Cost:
    """The standard chain; leaves folder/chain-TYPE.gguf and nothing else."""
    merged, between = folder / "merged", folder / "between.gguf"
    outtype = quantization if quantization in UNQUANTIZED else "f16"
    result = folder / f"chain-{quantization}.gguf"
    total = run([sys.executable, str(PEERS / "merge_peft.py"), str(base), str(adapter), str(merged)])
    converter = [sys.executable, str(checkout / "convert_hf_to_gguf.py"), str(merged), "--outtype", outtype, "--outfile", str(between)]
    total += run(converter)
    total.files = sum(path.stat().st_size for path in merged.rglob("*"))
    if outtype == quantization:
        between.rename(result)
    else:
        quantizer = [str(tools / "llama-quantize"), str(between), str(result), quantization.upper(), "2"]
        total += run(quantizer, LD_LIBRARY_PATH=str(tools))
        total.files += between.stat().st_size
        between.unlink()
    for path in merged.iterdir():
        path.unlink()
    merged.rmdir()
    return total


def one_pass(base: Path, adapter: Path | None, folder: Path, *types: str) -> Cost:
    command = [sys.executable, str(PEERS / "studio_gguf.py"), str(base), str(adapter or "-"), str(folder), *types]
    return run(command, OPENBLAS_NUM_THREADS="1", OMP_NUM_THREADS="1")


def compare(options: argparse.Namespace, folder: Path) -> bool:
    base, adapter = prepared(options, folder)
    print(
        f"{base.name}: {sum(path.stat().st_size for path in base.glob('*.safetensors')) / 1e6:,.0f} MB of weights, adapter of rank {RANK}"
    )
    good = True
    for quantization in options.types.split(","):
        ours, theirs = None, None
        for _ in range(options.tries):
            theirs = better(theirs, chain(base, adapter, folder, quantization, checkout=options.llama_cpp, tools=options.tools))
            (folder / f"chain-{quantization}.gguf").unlink()
            ours = better(ours, one_pass(base, adapter, folder, quantization))
            (folder / f"{quantization}.gguf").unlink()
        assert ours and theirs
        for name, cost in (("chain", theirs), ("studio", ours)):
            print(
                f"{quantization:8} {name:7} {cost.wall:7.2f} s  {cost.cpu:7.2f} CPU s  {cost.peak / 1e6:7,.0f} MB"
                f"  {cost.files / 1e6:7,.0f} MB of files  others {cost.others:.2f}"
            )
        target = TARGETS.get(quantization, 1.0)
        good &= told(quantization, "wall", theirs.wall / ours.wall, target)
        good &= told(quantization, "CPU", theirs.cpu / ours.cpu, target)
        good &= told(quantization, "memory", theirs.peak / ours.peak, LESS_MEMORY)
    return good


def better(known: Cost | None, new: Cost) -> Cost:
    return new if known is None or new.wall < known.wall else known


def told(quantization: str, figure: str, ratio: float, target: float) -> bool:
    print(f"{quantization:8} {figure:7} {ratio:6.1f} × (at least {target:g}) {'reached' if ratio >= target else 'MISSED'}")
    return ratio >= target


def ladder(options: argparse.Namespace, folder: Path) -> bool:
    base, adapter = prepared(options, folder)
    types = options.types.split(",")
    together = one_pass(base, adapter, folder, *types)
    apart = Cost()
    for quantization in types:
        (folder / f"{quantization}.gguf").unlink()
        apart += one_pass(base, adapter, folder, quantization)
        (folder / f"{quantization}.gguf").unlink()
    for name, cost in (("one pass", together), ("apart", apart)):
        print(
            f"{len(types)} types, {name:9} {cost.wall:7.2f} s  {cost.cpu:7.2f} CPU s  {cost.peak / 1e6:7,.0f} MB  others {cost.others:.2f}"
        )
    return told("ladder", "CPU", apart.cpu / together.cpu, 1.0)


def memory(options: argparse.Namespace, folder: Path) -> bool:
    base = sparse_model(options.base, folder / "large", billions=options.billions)
    adapter = random_adapter(base, folder / "adapter")
    cost = one_pass(base, adapter, folder, options.types)
    good = cost.peak <= FLAT
    print(f"{stored(base) / 1e9:.1f} GB of weights to {options.types}: {cost.wall:.1f} s, {cost.cpu:.1f} CPU s")
    print(f"peak {cost.peak / 1e6:,.0f} MB (at most {FLAT / 1e6:,.0f}) {'reached' if good else 'MISSED'}")
    return good


def stored(base: Path) -> int:
    return sum(path.stat().st_size for path in base.glob("*.safetensors"))


def prepared(options: argparse.Namespace, folder: Path) -> tuple[Path, Path]:
    """The base and the adapter, made where they were not named."""
    base = Path(options.base)
    if options.base == "1b":
        base = billion(options.tokenizer, folder / "1b")
    return base, options.adapter or random_adapter(base, folder / "adapter")


def billion(tokenizer: Path, folder: Path) -> Path:
    """A random Llama: hidden 2048, 22 layers, 32 heads on 4, intermediate 5632, the vocabulary of the folder `tokenizer`, bf16."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(SEED)
    words = json.loads((tokenizer / "config.json").read_text())["vocab_size"]
    shape = {"hidden_size": 2048, "num_hidden_layers": 22, "num_attention_heads": 32, "num_key_value_heads": 4, "intermediate_size": 5632}
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    LlamaForCausalLM(LlamaConfig(**shape, vocab_size=words, max_position_embeddings=2048)).save_pretrained(folder)
    torch.set_default_dtype(before)
    borrow(tokenizer, folder)
    return folder


def borrow(tokenizer: Path, folder: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        if (tokenizer / name).exists():
            (folder / name).write_bytes((tokenizer / name).read_bytes())


def sparse_model(tokenizer: Path, folder: Path, *, billions: float) -> Path:
    """A Llama of about `billions` of weights, bf16, in shards that are mostly holes: of a hundred rows one is written."""
    import numpy as np

    folder.mkdir()
    words = json.loads((tokenizer / "config.json").read_text())["vocab_size"]
    hidden, middle, kv = 4096, 11008, 1024
    layer = {
        "self_attn.q_proj": (hidden, hidden),
        "self_attn.k_proj": (kv, hidden),
        "self_attn.v_proj": (kv, hidden),
        "self_attn.o_proj": (hidden, hidden),
        "mlp.gate_proj": (middle, hidden),
        "mlp.up_proj": (middle, hidden),
        "mlp.down_proj": (hidden, middle),
        "input_layernorm": (hidden,),
        "post_attention_layernorm": (hidden,),
    }
    per_layer = sum(math.prod(shape) for shape in layer.values())
    layers = max(1, round((billions * 1e9 - 2 * words * hidden) / per_layer))
    groups = [{f"model.layers.{number}.{name}.weight": shape for name, shape in layer.items()} for number in range(layers)]
    groups.append({"model.embed_tokens.weight": (words, hidden), "lm_head.weight": (words, hidden), "model.norm.weight": (hidden,)})
    random, index = np.random.default_rng(SEED), {}
    for number, group in enumerate(groups):
        file = folder / f"model-{number + 1:05}-of-{len(groups):05}.safetensors"
        index.update(dict.fromkeys(group, file.name))
        write_sparse(file, group, random)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": middle,
        "num_hidden_layers": layers,
        "num_attention_heads": 32,
        "num_key_value_heads": kv // 128,
        "vocab_size": words,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
    }
    (folder / "config.json").write_text(json.dumps(config))
    borrow(tokenizer, folder)
    return folder


def write_sparse(file: Path, group: dict[str, tuple[int, ...]], random: Any) -> None:
    import numpy as np

    offset, header = 0, {}
    for name, shape in group.items():
        size = 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)
    with file.open("wb") as stream:
        stream.write(len(head).to_bytes(8, "little") + head)
        begin = stream.tell()
        stream.truncate(begin + offset)
        for name, shape in group.items():
            place = begin + header[name]["data_offsets"][0]
            rows = range(0, shape[0], 100) if len(shape) == 2 else [0]
            for row in rows:
                values = random.standard_normal(shape[-1], dtype=np.float32) * 0.02
                stream.seek(place + row * shape[-1] * 2)
                stream.write((values.view(np.uint32) >> 16).astype(np.uint16).tobytes())


def random_adapter(base: Path, folder: Path) -> Path:
    """Rank 16 on every linear layer of a Llama, as PEFT saves it, with B about as large as a short training makes it."""
    import numpy as np
    from safetensors.numpy import save_file

    folder.mkdir()
    random, tensors, names = np.random.default_rng(SEED), {}, set()
    for name, (rows, columns) in linears(base):
        names.add(name.rpartition(".")[2])
        tensors[f"base_model.model.{name}.lora_A.weight"] = random.standard_normal((RANK, columns), dtype=np.float32) / columns**0.5
        tensors[f"base_model.model.{name}.lora_B.weight"] = random.standard_normal((rows, RANK), dtype=np.float32) * np.float32(0.002)
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": RANK, "lora_alpha": 2 * RANK, "target_modules": sorted(names)}
    (folder / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": str(base)}))
    return folder


def linears(base: Path) -> Iterator[tuple[str, tuple[int, int]]]:
    from studio.ml.gguf.weights import Weights

    with Weights.of_model(base) as weights:
        for name, place in sorted(weights.places.items()):
            if name.endswith("_proj.weight"):
                yield name.removesuffix(".weight"), (place.shape[0], place.shape[1])


def main() -> None:
    parser = argparse.ArgumentParser(description="The studio's GGUF builds beside the standard chain")
    parser.add_argument("what", choices=["chain", "ladder", "memory"])
    parser.add_argument("--base", required=True)
    parser.add_argument("--tokenizer", type=Path, help="a model's folder, whose tokenizer `--base 1b` borrows")
    parser.add_argument("--adapter", type=Path)
    parser.add_argument("--llama-cpp", type=Path, help="a checkout of llama.cpp")
    parser.add_argument("--tools", type=Path, help="the folder with llama-quantize")
    parser.add_argument("--types", default="")
    parser.add_argument("--tries", type=int, default=2, help="the best of so many, in turn")
    parser.add_argument("--billions", type=float, default=7)
    parser.add_argument("--folder", type=Path, help="where to work; a disk with room")
    options = parser.parse_args()
    defaults = {"chain": ",".join(TARGETS), "ladder": "f16,q8_0,q6_k,q5_k_m,q4_k_m,q3_k_m", "memory": "q4_k_m"}
    options.types = options.types or defaults[options.what]
    if options.what == "memory":
        options.base = Path(options.base)
    with tempfile.TemporaryDirectory(prefix="gguf-", dir=options.folder) as name:
        work = {"chain": compare, "ladder": ladder, "memory": memory}[options.what]
        good = work(options, Path(name))
    print(f"peak of this process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3:,.0f} MB")
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()

"""Looks through an uploaded adapter in a process that is locked in, and writes what may be kept anew.

`python -m studio.ml.uploaded.inspecting REQUEST.json FOLDER` is what `taking` runs. No torch, no Django, nothing of the file is run.
"""

import json
import os
import sys
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

from studio.errors import UserError
from studio.ml import sandbox
from studio.ml.gguf.lora import NAME, PARTS, PREFIX, read_adapter
from studio.ml.gguf.peft_settings import Settings, read_settings
from studio.ml.gguf.peft_settings import names as is_named
from studio.ml.gguf.weights import Weights
from studio.ml.uploaded.config import of_layers, parse, rebuild
from studio.ml.uploaded.containers import CONFIG, TOKENIZER, WEIGHTS, Room, unpack
from studio.ml.uploaded.tensors import header, sizes, write_anew

REPORT = "report.json"
KEPT = "kept"
"""Folder of what may be kept."""
FORGOTTEN = ("auto_map", "chat_template", "tokenizer_file", "name_or_path")
"""Of a tokenizer's settings: what would run or fetch something, and a template, which is the base's."""


def inspect(request: dict[str, Any], folder: Path) -> dict[str, Any]:
    """What was found, and in `folder`/KEPT the adapter as it is kept. Raises UserError for what is not taken.

    Keys of `request`: upload (the file), config (the text of adapter_config.json where it came apart, or empty), base (its folder), tied,
    room (a Room).
    """
    raw, kept = folder / "raw", folder / KEPT
    raw.mkdir()
    kept.mkdir()
    unpacked = unpack(Path(request["upload"]), raw, Room(**request["room"]))
    if request["config"]:
        (raw / CONFIG).write_text(request["config"], encoding="utf-8")
    if not (raw / CONFIG).is_file():
        raise UserError("adapter_config.json is missing. Choose it beside the weights, or upload the whole folder as a .zip.")
    given = parse((raw / CONFIG).read_bytes())
    rebuilt = rebuild(given)
    (raw / CONFIG).write_text(json.dumps(given | {"target_modules": []}), encoding="utf-8")
    said = read_settings(raw)  # refuses kinds of adapters that are not taken
    tensors = header(raw / WEIGHTS)
    names = {name: usual_name(name) for name in tensors}
    if len(set(names.values())) < len(names):
        raise UserError("The adapter holds the same tensor under two names. Save it again.")
    refuse_what_is_not_there(said, names.values())
    largest = sizes(raw / WEIGHTS, tensors)
    write_anew(raw / WEIGHTS, tensors, names, kept / WEIGHTS)
    ours = of_layers(said, targets(names.values()))
    rebuilt.settings |= {name: value for name, value in ours.items() if name != "target_modules"}
    settings = rebuilt.settings | ours | {"inference_mode": True}
    (kept / CONFIG).write_text(json.dumps(settings, indent=2, sort_keys=True), encoding="utf-8")
    has_tokenizer = copy_tokenizer(raw, kept)
    with Weights.of_model(Path(request["base"])) as base, read_adapter(kept, base, tied=request["tied"]) as adapter:
        grew, swappable = adapter.rows is not None, adapter.swappable
        layers = len(adapter.changes)
    if grew and not has_tokenizer:
        raise UserError("The adapter has a vocabulary of its own, and its tokenizer is missing. Upload the whole folder as a .zip.")
    if not grew:
        for name in TOKENIZER:
            (kept / name).unlink(missing_ok=True)
    second = [name for name, usual in names.items() if ".lora_B." in usual or ".lora_embedding_B" in usual]
    return rebuilt.model_dump() | {
        "tensors": len(tensors),
        "parameters": sum(tensor.count for tensor in tensors.values()),
        "layers": layers,
        "changes_nothing": bool(second) and all(largest[name] == 0 for name in second),
        "grew": grew,
        "swappable": swappable,
        "left_files": unpacked.left[:50],
        "files": sorted(path.name for path in kept.iterdir()),
    }


def usual_name(name: str) -> str:
    """As peft names it today: with its prefix, and without the name that the adapter had in the program that saved it."""
    plain = name.removeprefix(PREFIX)
    for part in ("lora_A", "lora_B", "lora_magnitude_vector", "lora_embedding_A", "lora_embedding_B"):
        plain = plain.replace(f".{part}.default.", f".{part}.").removesuffix(".default") if f".{part}." in f"{plain}." else plain
    return PREFIX + plain


def targets(names: Iterable[str]) -> list[str]:
    """The layers that a product is added to, from the weights themselves."""
    return layers_with(names, "a", "table_a")


def layers_with(names: Iterable[str], *parts: str) -> list[str]:
    matches = [NAME.fullmatch(name.removeprefix(PREFIX)) for name in names]
    return sorted({match["layer"] for match in matches if match and PARTS[match["part"]] in parts})


def refuse_what_is_not_there(said: Settings, names: Collection[str]) -> None:
    """peft copies every module that is named as trained in full, however much is in it; so each must be a layer of the file's own."""
    whole, tokens = layers_with(names, "weight"), layers_with(names, "tokens")
    trained = said.trainable_token_indices
    asked = [(name, whole) for name in said.modules_to_save or []]
    asked += [(name, tokens) for name in (trained if isinstance(trained, dict) else {})]
    for name, layers in asked:
        if not any(is_named(layer, name) for layer in layers):
            raise UserError(f"adapter_config.json says that {name[:60]} was trained, and the file has no weights of a layer of that name.")


def copy_tokenizer(raw: Path, kept: Path) -> bool:
    """True where a tokenizer is there. Its files are parsed and written anew, without what would run or fetch something."""
    for name in TOKENIZER:
        if (raw / name).is_file():
            try:
                found = json.loads((raw / name).read_bytes())
            except (ValueError, RecursionError) as error:
                raise UserError(f"{name} is not valid JSON. Save the adapter again.") from error
            if name == "tokenizer_config.json" and isinstance(found, dict):
                found = {key: value for key, value in found.items() if key not in FORGOTTEN}
            (kept / name).write_text(json.dumps(found, ensure_ascii=False), encoding="utf-8")
    return (kept / "tokenizer.json").is_file()


def main(request_file: Path, folder: Path) -> None:
    """Reads the request, gives up all rights but those it needs, and only then opens the file."""
    request = json.loads(request_file.read_text())
    os.chdir(folder)
    reads = [Path(request["upload"]), Path(request["base"])]
    held = sandbox.enter(folder=folder, reads=reads, bounds=sandbox.Bounds(**request["bounds"]), parent=request["parent"])
    try:
        result = inspect(request, folder)
    except UserError as error:
        result = {"refused": error.message}
    (folder / REPORT).write_text(json.dumps(result | {"sandbox": held}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))

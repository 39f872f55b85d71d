"""Which files of a stranger's folder make a base model, and how they are taken over. Weights as they are, settings rebuilt.

Only safetensors and plain text are taken; pickles, which can run code when they are read, are never opened. Every header is checked before
the first byte is copied.
"""

import os
import re
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from studio.errors import UserError
from studio.ml.modelconfig import clean_config, clean_generation_config, clean_tokenizer_config, write_json
from studio.ml.modelfacts import INDEX, WEIGHTS, read_config, read_header, read_json, weight_files
from studio.training import Job

LICENCES = ("LICENSE", "LICENSE.txt", "LICENSE.md", "NOTICE", "NOTICE.txt", "NOTICE.md", "USE_POLICY.md")
"""What a maker says about the use of a model; it goes along with what is built from it."""
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".ckpt", ".joblib")
TOKENIZER_SOURCES = ("tokenizer.model", "vocab.json", "merges.txt", "added_tokens.json", "special_tokens_map.json")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", *TOKENIZER_SOURCES)
SMALL = {"config.json", "generation_config.json", *TOKENIZER_FILES, "chat_template.jinja", "README.md", *LICENCES, INDEX}
AS_THEY_ARE = ("tokenizer.json", "tokenizer.model", "chat_template.jinja", *LICENCES, INDEX)
LARGEST_SMALL = 256 << 20
PIECE = 64 << 20
"""Bytes between two looks at whether to stop."""

Put = Callable[[Path, Path], None]


def small_files(names: Iterable[str]) -> list[str]:
    """Those names that are settings, tokenizer or licence. Raises UserError where they cannot be a base model's."""
    names = set(names)
    if "adapter_config.json" in names and "config.json" not in names:
        raise UserError("This is an adapter, not a base model. Register the model that it was made for.")
    if "config.json" not in names:
        raise UserError("config.json is missing. Choose the folder that holds the model itself.")
    return sorted(names & SMALL)


def weights_among(names: Iterable[str], folder: Path) -> list[str]:
    """The weight files to take, by the index in `folder` where there is one. Raises UserError where there are no safetensors."""
    names = set(names)
    if INDEX in names:
        wanted = [file.name for file in weight_files(folder)]
        if missing := sorted(set(wanted) - names):
            raise UserError(f"{missing[0][:80]} is missing. Fetch the model again.")
        return wanted
    tensors = sorted(name for name in names if name.endswith(".safetensors") and not name.startswith("adapter"))
    if WEIGHTS in tensors:
        return [WEIGHTS]
    if len(tensors) == 1:
        return tensors
    if tensors:
        raise UserError(f"There are {len(tensors)} safetensors files and no {INDEX} that orders them. Fetch the model again.")
    pickles = sorted(name for name in names if name.endswith(PICKLES) and name != "training_args.bin")
    if pickles:
        raise UserError(
            f"This folder holds only pickle weights ({pickles[0][:80]}), which can run code when they are read. "
            "Convert them to safetensors first."
        )
    if any(name.endswith(".gguf") for name in names):
        raise UserError("This folder holds GGUF files, which are made for answering. Register the model's safetensors.")
    raise UserError("This folder holds no weights. A base model needs its weights as safetensors.")


def take(source: Path, out: Path, *, names: Iterable[str], job: Job, put: Put | None = None) -> None:
    """Makes a base model folder in `out` of the files `names` in `source`. `put(from, to)` moves a large file; the default copies it."""
    names = set(names)
    small = small_files(names)
    if too_large := [name for name in small if (source / name).stat().st_size > LARGEST_SMALL]:
        raise UserError(f"{too_large[0]} is too large to be what it says. Fetch the model again.")
    config = clean_config(read_config(source))
    weights = weights_among(names, source)
    for name in weights:
        read_header(source / name)
    enough_room(sum((source / name).stat().st_size for name in weights), folder=out)
    for name in small:
        if name in AS_THEY_ARE:
            shutil.copyfile(source / name, out / name)
    _settings(source, out, config=config, job=job)
    _move([(source / name, out / (WEIGHTS if len(weights) == 1 and INDEX not in names else name)) for name in weights], job=job, put=put)


def license_of(folder: Path) -> str:
    """What the head of README.md names, such as apache-2.0; empty where it names none."""
    readme = folder / "README.md"
    if not readme.is_file():
        return ""
    with readme.open(errors="replace") as file:
        head = file.read(8192)
    found = re.search(r"^license:\s*['\"]?([\w.+-]{1,60})", head, re.MULTILINE) if head.startswith("---") else None
    return found[1] if found else ""


def copy_file(source: Path, target: Path, *, each: Callable[[int], None]) -> None:
    """Copies inside the kernel, which shares the blocks where the file system can. `each(bytes)` is called for every piece."""
    with source.open("rb") as read, target.open("wb") as write:
        left = os.fstat(read.fileno()).st_size
        while left:
            done = _copy_piece(read.fileno(), write.fileno(), min(left, PIECE))
            if not done:
                raise UserError(f"{source.name} became shorter while it was copied. Wait until it is complete, then try again.")
            left -= done
            each(done)


def link_file(source: Path, target: Path) -> None:
    """The same bytes under a second name where the file system can; else a copy."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _copy_piece(read: int, write: int, size: int) -> int:
    if hasattr(os, "copy_file_range"):
        try:
            return os.copy_file_range(read, write, size)
        except OSError:  # not between these two file systems
            pass
    piece = os.read(read, min(size, 8 << 20))
    view = memoryview(piece)
    while view:
        view = view[os.write(write, view) :]
    return len(piece)


def _move(pairs: list[tuple[Path, Path]], *, job: Job, put: Put | None) -> None:
    total, done = sum(source.stat().st_size for source, _ in pairs), 0

    def each(count: int) -> None:
        nonlocal done
        job.raise_if_stopped()
        done += count
        job.progress(done, total, "bytes")

    for source, target in pairs:
        if put:
            put(source, target)
        else:
            copy_file(source, target, each=each)


def enough_room(size: int, *, folder: Path) -> None:
    free = shutil.disk_usage(folder).free
    if size > free:
        raise UserError(f"The model takes {size / 1e9:.1f} GB and {free / 1e9:.1f} GB are left on the disk. Make room, then try again.")


def _settings(source: Path, out: Path, *, config: dict[str, Any], job: Job) -> None:
    write_json(out / "config.json", config)
    settings, named = _optional(source / "tokenizer_config.json"), _optional(source / "special_tokens_map.json")
    write_json(out / "tokenizer_config.json", clean_tokenizer_config(settings, named=named, eos=None))
    if not (out / "tokenizer.json").is_file():
        _build_tokenizer(source, out, class_name=str(settings.get("tokenizer_class", "")), job=job)
    generation = _optional(source / "generation_config.json")
    cleaned = clean_generation_config(generation, config=config, ends=[])
    write_json(out / "generation_config.json", cleaned)
    first = cleaned["eos_token_id"]
    eos = _token(out / "tokenizer.json", first[0] if isinstance(first, list) and first else first)
    write_json(out / "tokenizer_config.json", clean_tokenizer_config(settings, named=named, eos=eos))


def _optional(file: Path) -> dict[str, Any]:
    return read_json(file) if file.is_file() else {}


def _token(file: Path, number: Any) -> str | None:
    from tokenizers import Tokenizer

    if type(number) is not int:
        return None
    try:
        return Tokenizer.from_file(str(file)).id_to_token(number)
    except Exception as error:  # the library raises bare Exception for every fault of the file
        raise UserError(f"tokenizer.json cannot be read: {error}. Fetch the model again.") from error


def _build_tokenizer(source: Path, out: Path, *, class_name: str, job: Job) -> None:
    """tokenizer.json out of the older files, by the library's own class for them."""
    from transformers import AutoTokenizer

    there = [name for name in TOKENIZER_SOURCES if (source / name).is_file()]
    folder = job.work / "tokenizer"
    folder.mkdir(parents=True, exist_ok=True)
    for name in there:
        shutil.copyfile(source / name, folder / name)
    shutil.copyfile(out / "config.json", folder / "config.json")
    if re.fullmatch(r"[A-Za-z0-9]{1,60}", class_name):
        write_json(folder / "tokenizer_config.json", {"tokenizer_class": class_name})
    try:
        if not {"tokenizer.model", "vocab.json"} & set(there):
            raise ValueError("nothing to build it from")
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        tokenizer.backend_tokenizer.save(str(out / "tokenizer.json"))
    except Exception as error:  # dozens of converters, each with its own way to fail
        raise UserError(
            "tokenizer.json is missing and could not be built from the other files. "
            f"Save it with `AutoTokenizer.from_pretrained(...).save_pretrained(...)` first. ({type(error).__name__})"
        ) from error
    job.note("tokenizer.json was missing; it was built from the older tokenizer files.", level="warning")

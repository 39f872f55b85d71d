"""A base model with tokens that it did not have: its tokenizer and its tables of words grow, everything else stays as it is.

A new token begins as the mean of the pieces that its text was read in before, so that the model is hardly surprised by it.
"""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from studio.errors import UserError
from studio.ml.modelconfig import write_json
from studio.ml.modelfacts import NEW_TOKENS, new_tokens, read_config, read_tensors, weight_files
from studio.ml.modelfiles import link_file
from studio.training import Job

TABLES = ("embed_tokens.weight", "wte.weight", "embed_in.weight", "lm_head.weight", "embed_out.weight")
"""Ends of the names of tables with a row for each token, in the families that are trained here."""
VERBATIM = "gguf_tokenizer.json"
USER_DEFINED, UNUSED = 4, 5
"""Types of a token in a GGUF: one that people added, and a row without a token."""


def grow(source: Path, out: Path, *, tokens: Sequence[str], job: Job) -> None:
    """Makes the base model folder `out` of the folder `source` and these tokens. Raises UserError where one is known already."""
    from tokenizers import AddedToken, Tokenizer

    tokenizer = Tokenizer.from_file(str(source / "tokenizer.json"))
    for token in tokens:
        if tokenizer.token_to_id(token) is not None:
            raise UserError(f"{token} is a token of this model already. Leave it out.", fields={"tokens": f"{token} is one already."})
    pieces = {token: tokenizer.encode(token, add_special_tokens=False).ids for token in tokens}
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in tokens])
    vocabulary: dict[str, int] = tokenizer.get_vocab()
    numbers = {token: vocabulary[token] for token in tokens}
    weights = {file.name for file in weight_files(source)}
    for file in sorted(source.iterdir()):
        if file.is_file() and file.name not in weights and file.name != "manifest.json":
            shutil.copyfile(file, out / file.name)
    tokenizer.save(str(out / "tokenizer.json"))
    _grow_tables(source, out, rows={numbers[token]: pieces[token] for token in tokens}, job=job)
    if (source / VERBATIM).is_file():
        _grow_verbatim(out / VERBATIM, numbers)
    write_json(out / NEW_TOKENS, {"tokens": [*new_tokens(source), *tokens]})


def _grow_tables(source: Path, out: Path, *, rows: dict[int, list[int]], job: Job) -> None:
    """Rewrites the files that hold a table; the others are linked. `rows`: for each new id, the ids that it begins as the mean of."""
    config = read_config(source)
    size = max(int(config["vocab_size"]), max(rows) + 1)
    tables = {name for name in read_tensors(source) if name.endswith(TABLES)}
    if not tables:
        raise UserError("This model's table of words was not found, so it cannot grow. Choose another model.")
    for file in weight_files(source):
        job.raise_if_stopped()
        _rewrite(file, out / file.name, tables=tables, size=size, rows=rows)
    write_json(out / "config.json", config | {"vocab_size": size})


def _rewrite(source: Path, target: Path, *, tables: set[str], size: int, rows: dict[int, list[int]]) -> None:
    from safetensors import safe_open
    from safetensors.torch import save_file

    with safe_open(source, framework="pt") as file:
        names = set(file.keys())
        if not names & tables:
            link_file(source, target)
            return
        tensors = {name: _grown(file.get_tensor(name), size=size, rows=rows) if name in tables else file.get_tensor(name) for name in names}
        save_file(tensors, target, metadata=file.metadata() or {"format": "pt"})


def _grown(table: Any, *, size: int, rows: dict[int, list[int]]) -> Any:
    """The table with `size` rows. A row without a token (padding) is all zeros where it is new."""
    import torch

    grown = torch.cat([table, table.new_zeros((max(0, size - len(table)), table.shape[1]))])
    for number, pieces in rows.items():
        grown[number] = table[pieces].float().mean(0).to(table.dtype)
    return grown


def _grow_verbatim(file: Path, numbers: dict[str, int]) -> None:
    """The same tokens in the entries that a GGUF of this model takes over word for word."""
    entries = json.loads(file.read_bytes())
    last = max(numbers.values())
    filler: dict[str, Any] = {"tokenizer.ggml.token_type": UNUSED, "tokenizer.ggml.scores": 0.0}
    for key, value in filler.items():
        if isinstance(entries.get(key), list):
            entries[key] += [value] * (last + 1 - len(entries[key]))
    texts = entries["tokenizer.ggml.tokens"]
    texts += [f"[PAD{number}]" for number in range(len(texts), last + 1)]
    for token, number in numbers.items():
        texts[number] = token
        if isinstance(entries.get("tokenizer.ggml.token_type"), list):
            entries["tokenizer.ggml.token_type"][number] = USER_DEFINED
    write_json(file, entries)

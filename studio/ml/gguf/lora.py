"""Reads an adapter as PEFT and those who build on it write it: which change each tensor of the base gets. `changes.py` applies them.

LoRA, rsLoRA, DoRA, layers and tables trained in full, single rows of tables, biases, a vocabulary that grew. What weights cannot
hold is refused. No torch.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from studio.errors import UserError
from studio.ml.gguf.changes import Added, Chain, Change, LowRank, Stored, Tokens, Whole, alike, equal
from studio.ml.gguf.peft_settings import Settings, names, read_plain, read_settings
from studio.ml.gguf.weights import Array, Place, Weights

PREFIX = "base_model.model."
PARTS = {
    "lora_A.weight": "a",
    "lora_B.weight": "b",
    "lora_B.bias": "more_bias",
    "lora_embedding_A": "table_a",
    "lora_embedding_B": "table_b",
    "lora_magnitude_vector": "magnitude",
    "lora_magnitude_vector.weight": "magnitude",
    "trainable_tokens_delta": "tokens",
    "token_adapter.trainable_tokens_delta": "tokens",
    "weight": "weight",
    "bias": "bias",
    "base_layer.weight": "weight",
    "base_layer.bias": "bias",
    "token_adapter.base_layer.weight": "weight",
    "modules_to_save.weight": "copy",
    "modules_to_save.bias": "copy",
    "original_module.weight": "copy",
    "original_module.bias": "copy",
}
"""Ends of names in peft's files, and what stands there. A copy stands elsewhere in the file as well, or is the base's own."""
NAME = re.compile(rf"(?P<layer>.+?)\.(?P<part>{'|'.join(re.escape(part) for part in PARTS)})")
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
OTHER_EMBEDDINGS, OTHER_HEADS = (
    (".wte.weight", ".embed_in.weight", ".word_embeddings.weight", ".embed_tokens.weight"),
    ("embed_out.weight",),
)
"""How the two tables are called in families that are only merged."""
LARGEST_TOKENIZER = 256 << 20
OTHER_BASE = "Choose the base that it was trained on."

Parts = dict[str, str]
"""By what it is, a tensor's name in the file."""


@dataclass(frozen=True)
class Adapter:
    changes: Mapping[str, Change]
    """By the name of the tensor in the base, such as model.layers.0.self_attn.q_proj.weight."""
    rows: int | None = None
    """Rows of the tables where training made the vocabulary larger or smaller; None where they are the base's."""
    tokenizer: Path | None = None
    """The folder whose tokenizer counts where the vocabulary grew."""
    untied: bool = False
    """The base shares one table for words and output, and training changed one of them alone: `lm_head.weight` stands in `changes`, or
    keeps the base's embedding, and both are written."""
    swappable: bool = True
    """True where llama.cpp can add it to a running model: products beside plain layers. All else must be merged."""
    stored: Stored | None = None

    def close(self) -> None:
        """Lets go of its file, which is else done once nobody knows the adapter any more."""
        if self.stored is not None:
            self.stored.close()

    def __enter__(self) -> "Adapter":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


NOTHING = Adapter({})


def read_adapter(folder: Path, base: Weights, *, tied: bool) -> Adapter:
    """The changes that the adapter in `folder` makes to `base`, which stays open while they are applied.

    `tied` says that the base uses its table of words as its output layer. Matrices are read where they are needed, from a file that stays
    open until `close`. Raises UserError for what cannot be added to weights.
    """
    settings = read_settings(folder)
    file = folder / "adapter_model.safetensors"
    if not file.is_file():
        raise UserError("The adapter has no adapter_model.safetensors. Only adapters saved as safetensors are read.")
    stored = Stored(file)
    try:
        return _Reading(folder, settings, stored, base, tied=tied).adapter()
    except BaseException:
        stored.close()
        raise


class _Reading:
    """One adapter beside one base, while it is looked through."""

    def __init__(self, folder: Path, settings: Settings, stored: Stored, base: Weights, *, tied: bool):
        self.folder, self.settings, self.stored, self.base, self.tied = folder, settings, stored, base, tied
        self.embedding, self.head = tables(base)
        self.layers = self._layers()

    def adapter(self) -> Adapter:
        changes: dict[str, Change] = {}
        for layer, parts in sorted(self.layers.items()):
            changes |= self._changes(layer, parts)
        untied = self.tied and self._share(changes)
        rows = self._rows(changes, untied=untied)
        plain = all(isinstance(change, LowRank) and change.magnitude is None for change in changes.values())
        return Adapter(
            changes=changes,
            rows=rows,
            tokenizer=self._tokenizer() if self.embedding in changes else None,
            untied=untied,
            # llama.cpp would take a product beside a shared table for both of its uses, and stops at its shape in the second
            swappable=plain and not (self.tied and {self.embedding, self.head} & changes.keys()),
            stored=self.stored,
        )

    def _layers(self) -> dict[str, Parts]:
        """What the file holds of each layer."""
        found: dict[str, Parts] = {}
        for name in self.stored.places:
            match = NAME.fullmatch(name.removeprefix(PREFIX))
            if match is None:
                raise UserError(f"The adapter holds {name}, which is no part of a LoRA. It cannot be merged into weights.")
            layer, part = match["layer"], PARTS[match["part"]]
            if part == "copy":
                continue
            if part in found.setdefault(layer, {}):
                raise UserError(f"The adapter holds two of {layer}'s {match['part']}. Train it again.")
            found[layer][part] = name
        if not found:
            raise UserError("The adapter is empty. Train it again.")
        for kept in self.settings.modules_to_save or []:
            if not any(
                names(layer, kept) or f".{kept}." in f".{layer}." for layer, parts in found.items() if {"weight", "bias"} & parts.keys()
            ):
                raise UserError(f"The adapter is incomplete: {kept}, which was trained in full, is missing. Train it again.")
        return found

    def _changes(self, layer: str, parts: Parts) -> dict[str, Change]:
        weight, bias = f"{layer}.weight", f"{layer}.bias"
        links: dict[str, list[Change]] = {weight: [], bias: []}
        kinds = parts.keys()
        if "weight" in kinds and not (len(kinds) > 1 and self._is_the_bases(weight, parts["weight"])):
            links[weight].append(self._whole(weight, parts["weight"]))
        if {"a", "b", "table_a", "table_b", "magnitude"} & kinds:
            links[weight].append(self._low_rank(layer, parts))
        if "tokens" in kinds:
            links[weight].append(self._tokens(layer, parts))
        if "bias" in kinds:
            links[bias].append(self._whole(bias, parts["bias"]))
        if "more_bias" in kinds:
            self._expect(bias, parts["more_bias"], self._place(bias).shape)
            links[bias].append(Added(self.stored, parts["more_bias"], self.settings.scale(layer)))
        return {name: found[0] if len(found) == 1 else Chain(tuple(found)) for name, found in links.items() if found}

    def _whole(self, name: str, part: str) -> Whole:
        rows, *columns = self._place(name).shape
        if name in (self.embedding, self.head):  # whose vocabulary may have grown
            rows = next(iter(self.stored.places[part].shape), 0)
        self._expect(name, part, (rows, *columns))
        return Whole(self.stored, part)

    def _low_rank(self, layer: str, parts: Parts) -> LowRank:
        name, table = f"{layer}.weight", "table_a" in parts
        a, b, magnitude = (parts.get(part) for part in ("table_a" if table else "a", "table_b" if table else "b", "magnitude"))
        if a is None or b is None or (magnitude is None) == bool(self.settings.use_dora):
            raise UserError(f"The adapter is incomplete: parts of {layer} are missing. Train it again.")
        rank = self.settings.rank(layer)
        rows, columns = self._size(name, parts)
        straight, turned = ((rank, columns), (rows, rank)), ((rank, rows), (columns, rank))
        found = (self.stored.places[a].shape, self.stored.places[b].shape)
        if found not in (straight, turned) or (table and found != turned):
            raise UserError(f"The adapter's {layer} does not fit the base model. {OTHER_BASE}")
        is_turned = found == turned and (table or bool(self.settings.fan_in_fan_out))
        if not is_turned and found != straight:
            raise UserError(f"The adapter's {layer} does not fit the base model. {OTHER_BASE}")
        if magnitude is not None and int(np.prod(self.stored.places[magnitude].shape)) != (columns if is_turned else rows):
            raise UserError(f"The adapter's {layer} does not fit the base model. {OTHER_BASE}")
        before = (lambda start, stop: self._before(name, parts, start, stop)) if is_turned and magnitude is not None else None
        return LowRank(self.stored, a, b, self.settings.scale(layer), is_turned, magnitude, before)

    def _tokens(self, layer: str, parts: Parts) -> Tokens:
        rows, columns = self._size(f"{layer}.weight", parts)
        indices = self.settings.tokens_of(layer)
        self._expect(f"{layer}.weight", parts["tokens"], (len(indices), columns))
        if len(set(indices)) < len(indices) or not all(0 <= index < rows for index in indices):
            raise UserError(f"The adapter trained tokens that the base model's {rows} rows do not hold. {OTHER_BASE}")
        return Tokens(self.stored, parts["tokens"], tuple(indices))

    def _share(self, changes: dict[str, Change]) -> bool:
        """Settles what becomes of the one table of a tied base. True where words and output are two tables from here on."""
        words, output = changes.get(self.embedding), changes.get(self.head)
        parts = self.layers.get(self.embedding.removesuffix(".weight"), {})
        if output is None and (words is None or ("tokens" in parts and "table_a" not in parts)):
            return False  # peft lets the output layer follow tokens that were trained one by one
        if words is not None and output is not None and alike(words, output, rows=self._size(self.embedding, parts)[0]):
            del changes[self.head]
            return False
        for name, other in ((self.embedding, self.head), (self.head, self.embedding)):
            under = changes.get(other)
            # what peft saves beneath an adapter is the shared table itself
            if name not in changes and isinstance(under, Chain) and isinstance(under.links[0], Whole):
                changes[name] = under.links[0]
        return True

    def _rows(self, changes: Mapping[str, Change], *, untied: bool) -> int | None:
        """Rows of both tables; None where they are the base's."""
        both = [self.embedding] if self.tied and not untied else [self.embedding, self.head]
        own = {name: place.shape[0] for name in both if (place := self._there(name))}
        found = {name: _own_rows(changes.get(name)) or rows for name, rows in own.items()}
        if found == own:
            return None
        if len(set(found.values())) > 1:
            sizes = " and ".join(f"{rows} rows in {name}" for name, rows in found.items())
            raise UserError(f"The vocabulary has {sizes} after the training. Train it again, with both tables in modules_to_save.")
        return found[self.embedding]

    def _tokenizer(self) -> Path | None:
        """The adapter's folder, where its tokenizer knows more tokens than the base's."""
        own, base = (_tokens_in(folder / "tokenizer.json") for folder in (self.folder, self._base_folder()))
        return self.folder if own > base else None

    def _base_folder(self) -> Path:
        return next(iter(self.base.places.values())).file.parent

    def _there(self, name: str) -> Place | None:
        """Where a tensor stands in the base; of the output layer of a tied one, where its words stand."""
        shared = self.tied and name == self.head
        return self.base.places.get(self.embedding if shared else name)

    def _place(self, name: str) -> Place:
        place = self._there(name)
        if place is None:
            layer, _, kind = name.rpartition(".")
            what = f"trained a bias of {layer}" if kind == "bias" else f"changes {layer}"
            raise UserError(f"The adapter {what}, which the base model does not have. {OTHER_BASE}")
        return place

    def _expect(self, name: str, part: str, shape: tuple[int, ...]) -> None:
        if self.stored.places[part].shape != shape:
            raise UserError(f"The adapter's {name} does not fit the base model. {OTHER_BASE}")

    def _size(self, name: str, parts: Parts) -> tuple[int, int]:
        """Rows and columns of a matrix as the adapter sees it."""
        shape = self._place(name).shape
        if len(shape) != 2:
            raise UserError(f"The adapter changes {name}, which has {len(shape)} dimensions in the base model. {OTHER_BASE}")
        return (self.stored.places[parts["weight"]].shape[0] if "weight" in parts else shape[0]), shape[1]

    def _before(self, name: str, parts: Parts, start: int, stop: int) -> Array:
        if "weight" in parts:
            return self.stored.weights.rows(parts["weight"], start, stop)
        return self._base_rows(name, start, stop)

    def _base_rows(self, name: str, start: int, stop: int) -> Array:
        return self.base.rows(self.embedding if self.tied and name == self.head else name, start, stop)

    def _is_the_bases(self, name: str, part: str) -> bool:
        """True where what peft saved beneath an adapter is what the base has."""
        shape = self._place(name).shape
        if len(shape) != 2 or self.stored.places[part].shape != shape:
            return False
        return equal(
            lambda start, stop: self.stored.weights.rows(part, start, stop),
            lambda start, stop: self._base_rows(name, start, stop),
            rows=shape[0],
        )


def tables(base: Weights) -> tuple[str, str]:
    """The names of the table that words are read with, and of the one that they are chosen with, there or not."""
    embedding = next((name for name in base.places if name == EMBEDDING), None)
    embedding = embedding or next((name for name in base.places if name.endswith(OTHER_EMBEDDINGS)), EMBEDDING)
    return embedding, next((name for name in base.places if name in OTHER_HEADS), HEAD)


def _own_rows(change: Change | None) -> int | None:
    """Rows of the table that a change brings with it."""
    first = change.links[0] if isinstance(change, Chain) else change
    return first.stored.places[first.name].shape[0] if isinstance(first, Whole) else None


def _tokens_in(file: Path) -> int:
    """How many tokens a tokenizer.json knows, by the highest number among them; 0 where there is none."""
    try:
        found = json.loads(read_plain(file, most=LARGEST_TOKENIZER))
        numbers = [token["id"] for token in found.get("added_tokens") or []]
        vocabulary = found["model"]["vocab"]
        return max([len(vocabulary), *(int(number) + 1 for number in numbers)])
    except FileNotFoundError:
        return 0
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{file.name} beside {file.parent.name} cannot be read. Fetch or train it again.") from error

"""What is learnt beside a frozen model: matrices through peft, and tables of words trained in full; how it is saved and taken up again.

The result is always an adapter of the untouched base, in the form that every reader of peft's files knows.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import save_file

from studio.ml import lora_init
from studio.ml.batches import TokenRow, spread
from studio.ml.loading import Arithmetic, choose_reader
from studio.ml.lora_init import Pair, lora_layers, matrices
from studio.ml.preference import PairRow, asleep
from studio.ml.saving import Tensors, read_weights
from studio.training import Job
from studio.training.lora import PeftConfig
from studio.training.memory import ALL_LINEAR

SETTINGS = (
    "alpha_pattern",
    "bias",
    "fan_in_fan_out",
    "lora_alpha",
    "lora_dropout",
    "peft_type",
    "r",
    "rank_pattern",
    "target_modules",
    "task_type",
    "use_dora",
    "use_rslora",
)
"""What of peft's config goes into the result: no paths, nothing that loading would have to obey."""
FIRST = "first."
"""Before the name of a matrix that the adapter began with, in a state."""
SHOWN_BATCHES, BATCH_TOKENS, SHOWN_ROWS = 4, 2048, 512
"""What EVA looks at: the leading directions are found after a few thousand tokens."""
TABLES = {"embed_tokens": "get_input_embeddings", "lm_head": "get_output_embeddings"}
"""Layers that can be trained in full, and transformers' way to ask any model for them."""


@dataclass
class Adapter:
    """A peft model's adapter, with all that belongs to it."""

    model: Any
    tables: dict[str, torch.nn.Parameter] = field(default_factory=dict)
    """Weights that are trained in full, in fp32, by their names in the base. Two names of one weight stand for a shared one."""
    first: dict[str, Pair] = field(default_factory=dict)
    """By layer, what was taken out of the base's weights at the beginning; empty where they are untouched."""

    def begin_from_weights(self, how: str, *, resume: Path | None, stopping: Callable[[], None]) -> None:
        """PiSSA or OLoRA. A run that goes on begins with the very matrices of its first attempt, which its state has kept."""
        kept = self._first_of(read_weights(resume)) if resume else {}
        self.first = kept or lora_init.begin_from_weights(self.model, how, stopping=stopping)
        lora_init.take_out(self.model, self.first)

    def weights(self) -> Tensors:
        """All that a state keeps, not copied. A weight that has two names is kept under its first."""
        return adapter_tensors(self.model) | self._own_tables() | self._first_tensors()

    def load(self, tensors: Tensors) -> None:
        """Puts what `weights` gave back into the same model, bit by bit."""
        tables = self._own_tables()
        with torch.no_grad():
            for name, table in tables.items():
                table.copy_(tensors[name])
        load_adapter(self.model, {name: tensor for name, tensor in tensors.items() if name not in tables and not name.startswith(FIRST)})

    def groups(self, *, rate: float, b_ratio: float, table_ratio: float) -> list[dict[str, Any]]:
        """Parameters for an optimizer: A and what else there is at `rate`, B at `b_ratio` times it (LoRA+: Hayou et al. 2024), tables."""
        tables = list(self._own_tables().values())
        b = [matrices(layer)[1] for layer in lora_layers(self.model).values()] if b_ratio != 1 else []
        apart = {id(parameter) for parameter in [*tables, *b]}
        others = [parameter for parameter in self.model.parameters() if parameter.requires_grad and id(parameter) not in apart]
        groups = ((others, 1.0), (b, b_ratio), (tables, table_ratio))
        return [{"params": parameters, "lr": rate * ratio} for parameters, ratio in groups if parameters]

    def save(self, folder: Path, *, base_name: str) -> None:
        """adapter_model.safetensors and adapter_config.json."""
        tensors, settings = adapter_tensors(self.model), peft_settings(self.model)
        if self.first:
            settings = lora_init.doubled_rank(settings)
            for layer in self.first:
                a, b = (f"{layer}.lora_{side}.weight" for side in "AB")
                tensors[a], tensors[b] = lora_init.as_plain_change((tensors[a], tensors[b]), self.first[layer])
        if self.tables:
            settings["modules_to_save"] = [name.split(".")[-2] for name in self.tables]
        tensors |= {_in_file(name): table.detach().clone() for name, table in self.tables.items()}  # the file knows no sharing
        write_adapter(folder, tensors, settings, base_name=base_name)

    def _own_tables(self) -> dict[str, torch.nn.Parameter]:
        """Each weight once, by its first name in peft's files."""
        names: dict[torch.nn.Parameter, str] = {}
        for name, table in self.tables.items():
            names.setdefault(table, name)
        return {_in_file(name): table for table, name in names.items()}

    def _first_tensors(self) -> Tensors:
        return {f"{FIRST}{layer}.{side}": matrix for layer, pair in self.first.items() for side, matrix in zip("AB", pair, strict=True)}

    def _first_of(self, tensors: Tensors) -> dict[str, Pair]:
        """None of them where the state was saved with another beginning: the loop refuses it by name."""
        layers = lora_layers(self.model)
        if not all(f"{FIRST}{layer}.A" in tensors for layer in layers):
            return {}
        device = next(self.model.parameters()).device
        return {layer: (tensors[f"{FIRST}{layer}.A"].to(device), tensors[f"{FIRST}{layer}.B"].to(device)) for layer in layers}


def add_matrices(base: Any, config: PeftConfig) -> Any:
    """The base as a peft model, frozen but for LoRA's matrices in fp32, which begin with chance."""
    settings = LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,  # type: ignore[arg-type]  # peft divides it, so a fraction is as good
        lora_dropout=config.dropout,
        target_modules=ALL_LINEAR if ALL_LINEAR in config.targets else list(config.targets),
        rank_pattern=config.rank_pattern,
        alpha_pattern=config.alpha_pattern,
        use_rslora=config.variant == "rslora",
        use_dora=config.variant == "dora",
        task_type="CAUSAL_LM",
    )
    return get_peft_model(base, settings)


def train_tables(model: Any, names: Sequence[str], *, dtype: torch.dtype) -> dict[str, torch.nn.Parameter]:
    """Makes these of a peft model's TABLES learn: in place and in fp32, while what they hand on keeps the model's number format.

    A model whose output layer is its embedding goes on sharing it; both of its names are in the answer then.
    """
    if not names:
        return {}
    base = model.get_base_model()
    modules = {getattr(base, ask)(): name for name, ask in TABLES.items()}
    weights = {module.weight for module, name in modules.items() if name in names}
    found: dict[str, torch.nn.Parameter] = {}
    learning = {weight: torch.nn.Parameter(weight.detach().float()) for weight in weights}
    for path, module in base.named_modules():
        if module in modules and module.weight in learning:
            module.weight = found[f"{path}.weight"] = learning[module.weight]
    base.get_input_embeddings().register_forward_hook(lambda _, __, output: output.to(dtype))
    return found


def begin_from_rows(model: Any, rows: Sequence[Any], *, arithmetic: Arithmetic, job: Job) -> None:
    """EVA, from an even spread of the training rows."""
    reader = choose_reader(model.get_base_model(), arithmetic=arithmetic)

    def read(batch: list[TokenRow]) -> None:
        job.raise_if_stopped()
        with arithmetic.autocast():
            reader.backbone(**reader.batch(batch).inputs, use_cache=False)

    with asleep(model):
        begun, layers = lora_init.begin_from_inputs(model, _batches_of_tokens(rows), read), len(lora_layers(model))
    if begun < layers:
        job.note(f"{layers - begun} of {layers} layers saw too few tokens for EVA and begin as usual.")


def _batches_of_tokens(rows: Sequence[Any]) -> Iterator[list[TokenRow]]:
    """Up to SHOWN_BATCHES batches of at least BATCH_TOKENS tokens; the last one may be smaller."""
    batch: list[TokenRow] = []
    left = SHOWN_BATCHES
    for number in spread(len(rows), limit=SHOWN_ROWS):
        row = rows[number]
        batch += row.readings if isinstance(row, PairRow) else [row]
        if sum(each.length for each in batch) >= BATCH_TOKENS:
            yield batch
            batch, left = [], left - 1
            if not left:
                return
    if batch:
        yield batch


def adapter_tensors(model: Any) -> Tensors:
    """peft's matrices and DoRA's sizes, under the names of peft's files; not copied."""
    # "auto" would ask the hub whether the base has grown
    return {name: tensor.detach() for name, tensor in get_peft_model_state_dict(model, save_embedding_layers=False).items()}


def load_adapter(model: Any, tensors: Tensors) -> None:
    """Puts what `adapter_tensors` gave back into the same adapter."""
    if tensors.keys() != adapter_tensors(model).keys():
        raise RuntimeError("the saved adapter has other layers than this one")
    set_peft_model_state_dict(model, tensors)


def peft_settings(model: Any) -> dict[str, Any]:
    known = model.peft_config["default"].to_dict()
    return {name: _plain(known[name]) for name in SETTINGS if name in known} | {"init_lora_weights": True}


def write_adapter(folder: Path, tensors: Tensors, settings: dict[str, Any], *, base_name: str) -> None:
    stored = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
    save_file(stored, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    settings = settings | {"base_model_name_or_path": base_name, "inference_mode": True}
    (folder / "adapter_config.json").write_text(json.dumps(settings, indent=2, sort_keys=True), encoding="utf-8")


def _in_file(name: str) -> str:
    return f"base_model.model.{name}"


def _plain(value: Any) -> Any:
    if isinstance(value, set):
        return sorted(value)
    return getattr(value, "value", value)

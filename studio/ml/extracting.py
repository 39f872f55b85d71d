"""The order "extraction": adapters out of a fully trained model, one for each rank, and how much of what it learnt each of them keeps.

The model and its base are read layer by layer, side by side, and each layer is taken apart once for all ranks. What has been done stands
in the order's state, so a killed attempt is gone on from.
"""

import json
import os
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from studio.errors import UserError
from studio.ml import releasedmodel
from studio.ml.difference import Difference, Layout, factors, layout_of
from studio.ml.evaluating import COVERED, LEAST_ROWS, RESAMPLES, SEED
from studio.ml.extracted import PREFIX, Entry, card, settings_of, write_tensors
from studio.ml.gguf import budget
from studio.ml.gguf.needs import PROCESS, refuse_full_disk
from studio.ml.heldout import Row, as_asked, held_out
from studio.ml.rowlosses import row_losses
from studio.storage import remove_folder
from studio.training.extraction import FULL, called, folder_of, in_order
from studio.training.job import Job, Stopped
from studio.training.orders import EvaluatedModel, ExtractionPayload
from studio.worker.host import memory_size

SQUARES, CHANGES = 3 * 8, 6 * 4
"""Bytes for each number of a square of the shorter side, of which eigenvectors take three in float64, and of a change and its factors."""
DIGITS = 6
"""Of shares; more would only fill the page."""

Losses = npt.NDArray[np.float64]


def run(payload: dict[str, Any], job: Job) -> dict[str, Any]:
    """Leaves a folder for each rank and layers.json; returns what `comparisons.extraction_kind.Found` describes.

    Raises UserError where the models are not of one shape, or where memory or disk are too small for the work.
    """
    order = ExtractionPayload.model_validate(payload)
    state = Path(order.state)
    try:
        return Extraction(order, job).run()
    except Stopped:
        if not job.pausing():
            remove_folder(state)
        raise
    except BaseException:
        remove_folder(state)
        raise


@dataclass(frozen=True)
class Layer:
    """What is known of a linear layer's change once it was taken apart."""

    name: str
    outputs: int
    inputs: int
    squares: list[float]
    """Of the singular values, from the largest."""
    total: float
    """Of all of them."""

    @property
    def rank(self) -> int:
        """Its full one."""
        return min(self.outputs, self.inputs)

    def rank_at(self, rank: int) -> int:
        return min(rank, self.rank) if rank != FULL else self.rank

    def held(self, rank: int) -> float:
        """The sum of squares that its approximation holds."""
        return min(self.total, sum(self.squares[: self.rank_at(rank)]))


class Extraction:
    """One attempt."""

    def __init__(self, order: ExtractionPayload, job: Job):
        self.order, self.job = order, job
        self.base, self.source, self.state = Path(order.base), Path(order.source), Path(order.state)
        self.ranks = in_order(order.ranks)
        self.layout: Layout = layout_of(self.base)

    def run(self) -> dict[str, Any]:
        self.state.mkdir(parents=True, exist_ok=True)
        self.job.phase("reading", "Comparing the model with its base")
        with Difference(self.base, self.source, self.layout) as difference:
            linears = [name for name in self.layout.linears if f"{name}.weight" in difference.shapes]
            self._refuse_too_large(difference, linears)
            rest = self._rest(difference, linears)
            layers = [layer for layer in self._taken_apart(difference, linears) if layer.total > 0]
            if not layers:
                raise UserError("No linear layer of this model differs from its base, so there is nothing to take out of it.")
            kept = self._kept_tables(difference, rest)
            for rank in self.ranks:
                self.job.raise_if_stopped()
                self.job.phase("saving", f"Writing the adapter of {called(rank)}")
                self._write(rank, layers, difference, kept)
        measured = self._measured(layers)
        facts = self._facts(layers, rest, kept, measured)
        self._describe(layers, facts)
        remove_folder(self.state)
        return facts

    # ── What changed ──

    def _refuse_too_large(self, difference: Difference, linears: list[str]) -> None:
        """Before anything long begins."""
        shapes = [difference.shapes[f"{name}.weight"].shape for name in linears]
        if not shapes:
            raise UserError("The model's layers are not called as its family calls them, so no adapter can be taken out of it.")
        need = PROCESS + max(min(shape) ** 2 * SQUARES + shape[0] * shape[1] * CHANGES for shape in shapes)
        if need > memory_size():
            raise UserError(
                f"Taking its largest layer apart needs {need / 1e9:.1f} GB, and this machine has {memory_size() / 1e9:.1f} GB. "
                "Use a larger machine."
            )
        self.need = need
        sizes = [sum(self._at(rank, shape) * sum(shape) * 4 for shape in shapes) for rank in self.ranks]
        refuse_full_disk(self.job.out, sum(sizes) + max(sizes), state=self.state)

    def _at(self, rank: int, shape: tuple[int, ...]) -> int:
        return min(shape) if rank == FULL else min(rank, *shape)

    def _rest(self, difference: Difference, linears: list[str]) -> dict[str, float]:
        """The sum of squares of what changed outside of the linear layers, by what it is."""
        found: dict[str, float] = defaultdict(float)
        weights = {f"{name}.weight" for name in linears}
        for name in difference.shapes:
            if name not in weights:
                self.job.raise_if_stopped()
                found[self._part_of(name, difference.shapes[name].shape)] += difference.energy(name)
        return {part: energy for part, energy in found.items() if energy > 0}

    def _part_of(self, name: str, shape: tuple[int, ...]) -> str:
        layer, _, kind = name.rpartition(".")
        if layer in self.layout.tables:
            return "words" if layer == self.layout.words else "output"
        if kind == "bias":
            return "biases"
        return "norms" if len(shape) <= 1 else "other"

    def _taken_apart(self, difference: Difference, linears: list[str]) -> list[Layer]:
        """Every linear layer, from the state where an earlier attempt left it."""
        most = max(10**9 if rank == FULL else rank for rank in self.ranks)
        self.job.phase("preparing", "Taking the layers apart")
        found = []
        with budget.reserved(min(self.need, budget.limit()), job=self.job, limit=budget.limit(), folder=budget.ledger()):
            self.job.phase("converting", "Taking the layers apart")
            for number, name in enumerate(linears):
                self.job.raise_if_stopped()
                found.append(self._layer(difference, name, rank=most))
                self.job.progress(number + 1, len(linears), "layers")
        return found

    def _layer(self, difference: Difference, name: str, *, rank: int) -> Layer:
        facts = self.state / f"{name}.json"
        if facts.is_file():
            return Layer(**json.loads(facts.read_bytes()))
        change = difference.change(f"{name}.weight")
        if name in self.layout.turned:
            change = change.t()
        parts = factors(change, rank=rank)
        if not torch.isfinite(parts.a).all() or not torch.isfinite(parts.b).all():
            raise UserError(f"{name} holds numbers that are none: the model is damaged, or its training went astray.")
        save_file({"a": parts.a, "b": parts.b}, self.state / f"{name}.safetensors")
        layer = Layer(name, change.shape[0], change.shape[1], list(parts.squares), parts.total)
        _write_whole(facts, json.dumps(vars(layer)).encode())  # only now is the layer done
        return layer

    # ── The adapters ──

    def _kept_tables(self, difference: Difference, rest: dict[str, float]) -> list[str]:
        """The tables that go along whole: those that changed, under both of their names where they are one."""
        if not self.order.tables:
            return []
        if self.layout.tied:
            return list(self.layout.tables) if "words" in rest else []
        return [table for part, table in zip(("words", "output"), self.layout.tables, strict=True) if part in rest]

    def _write(self, rank: int, layers: list[Layer], difference: Difference, tables: list[str]) -> None:
        folder = self.folder(rank)
        folder.mkdir()
        entries: dict[str, Entry] = {}
        for layer in layers:
            r = layer.rank_at(rank)
            for side, shape in (("A", (r, layer.inputs)), ("B", (layer.outputs, r))):
                entries[f"{PREFIX}{layer.name}.lora_{side}.weight"] = Entry(shape, torch.float32, self._part(layer.name, side, r))
        for table in tables:
            name = f"{self.layout.words if self.layout.tied else table}.weight"
            place = difference.trained(name)
            entries[f"{PREFIX}{table}.weight"] = Entry(tuple(place.shape), place.dtype, lambda name=name: difference.trained(name))  # type: ignore[misc]
        write_tensors(folder / "adapter_model.safetensors", entries)
        settings = settings_of(self.layout, {layer.name: layer.rank_at(rank) for layer in layers}, tables=tables)
        settings |= {"base_model_name_or_path": self.order.model.name, "inference_mode": True}
        (folder / "adapter_config.json").write_text(json.dumps(settings, indent=2, sort_keys=True), encoding="utf-8")

    def _part(self, name: str, side: str, rank: int) -> Callable[[], torch.Tensor]:
        """A or B of the first `rank` directions, read when it is asked for."""

        def read() -> torch.Tensor:
            with safe_open(self.state / f"{name}.safetensors", framework="pt") as file:
                found: torch.Tensor = file.get_slice("a")[:rank] if side == "A" else file.get_slice("b")[:, :rank]
            return found

        return read

    def folder(self, rank: int) -> Path:
        return self.job.out / folder_of(rank)

    # ── What they keep ──

    def _measured(self, layers: list[Layer]) -> "Measured | None":
        """Every model's loss on the rows that were held out of the training; None where there are none."""
        if not self.order.rows:
            return None
        path = Path(self.order.rows)
        rows = held_out(path, split="validation", learnt_from=[path], parameters=self.order.model.parameters).rows
        if not rows:
            return None
        own = {rank: sum(layer.rank_at(rank) * (layer.inputs + layer.outputs) for layer in layers) for rank in self.ranks}
        usual = self.order.model.parameters + max((count for rank, count in own.items() if rank != FULL), default=0)
        base = self._told("The base model", self.base, parameters=usual)
        losses, tokens = self._losses("base", base, rows)
        full, _ = self._losses("full", self._told(self.order.name, self.source, parameters=usual), rows)
        found = Measured(losses, full, tokens, {}, {})
        for rank in self.ranks:
            told = self._told(f"The adapter of {called(rank)}", self.base, adapter=self.folder(rank), parameters=usual)
            need = memory_for(self.order.model.parameters + own[rank], like=told)
            if need > memory_size():
                found.why[rank] = f"It needs {need / 1e9:.1f} GB to be measured, and this machine has {memory_size() / 1e9:.1f} GB."
            else:
                found.own[rank], _ = self._losses(folder_of(rank), told, rows, need=need)
        return found

    def _told(self, name: str, base: Path, *, parameters: int, adapter: Path | None = None) -> EvaluatedModel:
        """All of them have one figure of weights, by which the arithmetic is chosen: it is the same for each."""
        folder, context = str(adapter) if adapter else "", self.order.model.context_length
        return EvaluatedModel(name=name, base=str(base), adapter=folder, parameters=parameters, context=context)

    def _losses(self, name: str, told: EvaluatedModel, rows: list[Row], *, need: int = 0) -> tuple[Losses, Losses]:
        """(nats, tokens) of each row, from the state where they were measured before."""
        kept = self.state / f"losses-{name}.npy"
        if kept.is_file():
            both = np.load(kept)
            return both[0], both[1]
        need = min(need or releasedmodel.memory_of(told), budget.limit())
        with budget.reserved(need, job=self.job, limit=budget.limit(), folder=budget.ledger()):
            self.job.phase("loading", f"Loading {told.name}")
            model = releasedmodel.load(told)
            losses, tokens = row_losses(model, [as_asked(row, "") for row in rows], told, job=self.job)
        partial = kept.with_suffix(".part.npy")
        np.save(partial, np.stack([losses, tokens]))
        os.replace(partial, kept)
        return losses, tokens

    # ── What is told ──

    def _facts(self, layers: list[Layer], rest: dict[str, float], kept: list[str], measured: "Measured | None") -> dict[str, Any]:
        total = sum(layer.total for layer in layers)
        every = total + sum(rest.values())
        in_adapter = {"words": self.layout.words in kept, "output": self.layout.output in kept}
        return {
            "layers": [
                {
                    "name": layer.name,
                    "outputs": layer.outputs,
                    "inputs": layer.inputs,
                    "share": round(layer.total / total, DIGITS),
                    "held": [round(layer.held(rank) / layer.total, DIGITS) for rank in self.ranks],
                }
                for layer in layers
            ],
            "linear": round(total / every, DIGITS),
            "rest": [
                {"part": part, "share": round(energy / every, DIGITS), "kept": in_adapter.get(part, False)} for part, energy in rest.items()
            ],
            "ranks": [self._rank_facts(rank, layers, total, measured) for rank in self.ranks],
            "source_size": sum(path.stat().st_size for path in self.source.glob("*.safetensors")),
        } | (measured.facts() if measured else {"rows": 0, "tokens": 0, "base_loss": None, "full_loss": None})

    def _rank_facts(self, rank: int, layers: list[Layer], total: float, measured: "Measured | None") -> dict[str, Any]:
        files = list(self.folder(rank).glob("*.safetensors"))
        return {
            "rank": rank,
            "folder": folder_of(rank),
            "size": sum(path.stat().st_size for path in files),
            "parameters": sum(layer.rank_at(rank) * (layer.inputs + layer.outputs) for layer in layers),
            "energy": round(sum(layer.held(rank) for layer in layers) / total, DIGITS),
        } | (measured.of(rank) if measured else {"loss": None, "kept": None, "low": None, "high": None, "why": ""})

    def _describe(self, layers: list[Layer], facts: dict[str, Any]) -> None:
        """README.md of each adapter, and layers.json, with the singular values' squares as far as they were kept."""
        for found in facts["ranks"]:
            text = card(
                self.order.name,
                self.order.model.name,
                rank=max(layer.rank_at(found["rank"]) for layer in layers),
                energy=found["energy"],
                kept=sentence(found, rows=facts["rows"]),
            )
            (self.folder(found["rank"]) / "README.md").write_text(text, encoding="utf-8")
        (self.job.out / "layers.json").write_text(json.dumps([vars(layer) for layer in layers]), encoding="utf-8")


@dataclass
class Measured:
    """Losses row by row, in nats."""

    base: Losses
    full: Losses
    tokens: Losses
    own: dict[int, Losses]
    """By rank."""
    why: dict[int, str]
    """By rank, why it was not measured."""

    @property
    def usable(self) -> npt.NDArray[np.bool_]:
        """Rows that each could read whole; the tokenizer is one, so they are the same for all."""
        return np.isfinite(self.base) & np.isfinite(self.full)

    def facts(self) -> dict[str, Any]:
        rows = self.usable
        count, tokens = int(rows.sum()), float(self.tokens[rows].sum())
        if not count:
            return {"rows": 0, "tokens": 0, "base_loss": None, "full_loss": None}
        return {
            "rows": count,
            "tokens": int(tokens),
            "base_loss": float(self.base[rows].sum() / tokens),
            "full_loss": float(self.full[rows].sum() / tokens),
        }

    def of(self, rank: int) -> dict[str, Any]:
        rows = self.usable
        if rank not in self.own or not rows.any():
            return {"loss": None, "kept": None, "low": None, "high": None, "why": self.why.get(rank, "")}
        own = self.own[rank][rows]
        kept, low, high = kept_share(self.base[rows], self.full[rows], own)
        return {"loss": float(own.sum() / self.tokens[rows].sum()), "kept": kept, "low": low, "high": high, "why": ""}


def kept_share(base: Losses, full: Losses, own: Losses) -> tuple[float | None, float | None, float | None]:
    """(share, low, high): how much of what full training gained on the rows, (base - own) / (base - full), is kept.

    The interval is a paired bootstrap over the rows (Efron 1979), of which COVERED lies within. None where full training gained nothing;
    no interval for too few rows, and where it gained nothing in some draw, for then nothing is a share of it.
    """
    gain, own_gain = base - full, base - own
    if gain.sum() <= 0:
        return None, None, None
    share = float(own_gain.sum() / gain.sum())
    if len(base) < LEAST_ROWS:
        return share, None, None
    drawn = np.random.default_rng(SEED).integers(0, len(base), (RESAMPLES, len(base)))
    gains = gain[drawn].sum(axis=1)
    if not (gains > 0).all():
        return share, None, None
    edge = (1 - COVERED) / 2
    low, high = np.quantile(own_gain[drawn].sum(axis=1) / gains, (edge, 1 - edge))
    return share, float(low), float(high)


def sentence(found: dict[str, Any], *, rows: int) -> str:
    """What one rank keeps, for people."""
    if found["kept"] is None:
        return found["why"] or "What it keeps of the model's gain was not measured."
    interval = f" ({found['low']:.1%} to {found['high']:.1%})" if found["low"] is not None else ""
    return f"Of what the model gained on {rows} held-out rows it keeps {found['kept']:.1%}{interval}."


def memory_for(parameters: int, *, like: EvaluatedModel) -> int:
    """Bytes for so many weights, each as wide as in `like`."""
    return int(releasedmodel.LEAST + parameters * releasedmodel.width(like.parameters) * releasedmodel.HELD)


def _write_whole(path: Path, content: bytes) -> None:
    partial = path.with_suffix(".part")
    partial.write_bytes(content)
    os.replace(partial, path)

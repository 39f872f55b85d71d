"""Comparisons that were measured, made of given numbers: what the verdict, the report, the ratings and their pages are tried on."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from studio.comparisons.measured import SCHEMA, Key, Measured, folder_of
from studio.comparisons.models import Comparison
from studio.orders.models import Order
from studio.workspaces.models import Member
from tests.fixtures import make_order

BASE: Key = (-1, 0)
Rows = Mapping[Key, Sequence[float]]


def make_measured(
    comparison: Comparison,
    *,
    held_out: Rows | None = None,
    probe: Rows | None = None,
    kl: Rows | None = None,
    tokens: Sequence[int] | int = 10,
    characters: Sequence[int] | int = 40,
    answers: Mapping[Key, Sequence[str | Mapping[str, Any]]] | None = None,
    prompts: Sequence[Mapping[str, Any]] | None = None,
    results: Mapping[Key, Mapping[str, Any]] | None = None,
    **facts: Any,
) -> Measured:
    """Writes the four files where the comparison's measuring order leaves them, and reads them as the studio does.

    `held_out` and `probe` give the nats of each row by (arm, seed), with BASE for the untouched model; without them every run of every arm
    has numbers of its own, in which arm 0 learnt a little less than arm 1. `kl` is of the probe rows. `answers` are texts, or `Answer`'s
    columns; `results` further columns of `Result`.
    """
    held_out = held_out if held_out is not None else usual(comparison, base=20.0, step=4.0)
    probe = probe if probe is not None else usual(comparison, base=15.0, step=-0.5)
    kl = kl if kl is not None else {key: [0.01 * (key[0] + 1)] * len(values) for key, values in probe.items() if key[0] >= 0}
    answers = (
        answers if answers is not None else {key: [f"Answer {number} of {key[0]}/{key[1]}." for number in range(3)] for key in held_out}
    )
    prompts = prompts if prompts is not None else usual_prompts(max((len(said) for said in answers.values()), default=0))
    folder = place_order(comparison)
    folder.mkdir(parents=True, exist_ok=True)
    write_rows(folder / "rows.parquet", {"held_out": held_out, "probe": probe}, kl, tokens=tokens, characters=characters)
    write_lines(folder / "prompts.jsonl", prompts)
    usual_answer = {"tokens": 6, "seconds": 0.5, "first": 0.1, "scores": {}, "overlap": 0.0}
    write_lines(
        folder / "answers.jsonl",
        [
            {"arm": arm, "seed": seed, "prompt": number, **usual_answer, **({"text": said} if isinstance(said, str) else said)}
            for (arm, seed), each in answers.items()
            for number, said in enumerate(each)
        ],
    )
    told = [usual_result(key) | dict((results or {}).get(key, {})) for key in held_out]
    known = {"results": told, "probe": "General questions", "held_out": len(next(iter(held_out.values()), [])), "left_out": 0}
    (folder / "facts.json").write_text(json.dumps(known | facts), encoding="utf-8")
    return Measured.of(comparison)


def usual(comparison: Comparison, *, base: float, step: float, rows: int = 12) -> dict[Key, list[float]]:
    """Nats of `rows` rows for the untouched model and each run: every arm a `step` better than the one before, each seed a little apart."""
    spread = np.linspace(-1, 1, rows)
    found = {BASE: (base + spread).tolist()}
    for arm in comparison.arms.all():
        for trained in arm.runs.all():
            found[arm.number, trained.seed] = (base - step * (arm.number + 1) + spread + 0.1 * (trained.seed % 7)).tolist()
    return found


def usual_prompts(count: int) -> list[dict[str, Any]]:
    asked = [f"Question {number}?" for number in range(count)]
    return [{"prompt": [{"role": "user", "content": text}], "shown": text, "expected": f"Answer {n}."} for n, text in enumerate(asked)]


def usual_result(key: Key) -> dict[str, Any]:
    """Arm 0 is an adapter, every other one a whole model."""
    told: dict[str, Any] = {"arm": key[0], "seed": key[1], "first_token": 0.2, "tokens_per_second": 20.0}
    if key[0] < 0:
        return told | {"size": 270_000_000, "gguf_size": 145_000_000, "trainable": 0, "memorised": [0.0] * 4}
    whole = key[0] > 0
    adapter = None if whole else 9_800_000
    size, trainable = (538_000_000, 134_515_008) if whole else (19_500_000, 4_884_480)
    return told | {
        "size": size,
        "gguf_size": 145_000_000,
        "gguf_adapter_size": adapter,
        "trainable": trainable,
        "memorised": [0.1 * (key[0] + 1)] * 4,
    }


def place_order(comparison: Comparison) -> Path:
    """Where the measuring order leaves its files; an order that has ended is made where there is none."""
    if comparison.order is None:
        member = Member.objects.filter(workspace=comparison.project.client.workspace, role="owner").first()
        assert member is not None
        comparison.order = make_order(member, kind="comparison", client=comparison.project.client, status=Order.Status.SUCCEEDED)
        comparison.save(update_fields=["order"])
    folder = folder_of(comparison)
    assert folder is not None
    return folder


def write_rows(path: Path, sets: Mapping[str, Rows], kl: Rows, *, tokens: Sequence[int] | int, characters: Sequence[int] | int) -> None:
    def of(counts: Sequence[int] | int, row: int) -> int:
        return counts if isinstance(counts, int) else counts[row]

    rows = [
        {
            "arm": arm,
            "seed": seed,
            "set": name,
            "row": row,
            "loss": loss,
            "tokens": of(tokens, row),
            "characters": of(characters, row),
            "kl": kl[arm, seed][row] if name == "probe" and (arm, seed) in kl else None,
        }
        for name, losses in sets.items()
        for (arm, seed), each in losses.items()
        for row, loss in enumerate(each)
        if not np.isnan(loss)
    ]
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), path)


def write_lines(path: Path, told: Sequence[Mapping[str, Any]]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in told), encoding="utf-8")

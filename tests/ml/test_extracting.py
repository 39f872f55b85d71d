"""Adapters are taken out of a fully trained model: at full rank they are that model, and below it as close as can be."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from studio.errors import UserError
from studio.ml import extracting
from studio.ml.difference import Difference, factors, layout_of
from studio.ml.extracting import kept_share, run
from studio.ml.gguf import budget
from studio.ml.gguf.lora import read_adapter
from studio.ml.gguf.weights import Weights
from studio.ml.modelfacts import read_model_facts
from studio.ml.releasedmodel import with_adapter
from studio.ml.tokens import encode_rows, load_tokenizer
from studio.training.job import Stopped
from tests.jobs import ListeningJob
from tests.ml.adapters import says
from tests.ml.conftest import make_tiny_model
from tests.ml.test_evaluating import stored

IDS = list(range(5, 45))
WEIGHTS = "model.safetensors"


def chat(number: int) -> dict[str, Any]:
    answer = f"It is {2 * number}, for {number} and {number} are that." if number % 2 else f"Ask again: {number} is even."
    return {"messages": [{"role": "user", "content": f"What is {number} and {number}?"}, {"role": "assistant", "content": answer}]}


CHATS = [chat(number) for number in range(48)]


@pytest.fixture(autouse=True)
def ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(budget.LEDGER, str(tmp_path / "ledger"))


def trained(base: Path, folder: Path, *, linears_alone: bool, steps: int = 50) -> Path:
    """The base, taught the first two thirds of CHATS with every weight, or with those of its linear layers."""
    shutil.copytree(base, folder)
    torch.manual_seed(1)
    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not linears_alone or "proj" in name)
    rows = [row for row in encode_rows(load_tokenizer(base), CHATS[:32], max_length=256) if row.teaches]
    optimizer = torch.optim.AdamW([each for each in model.parameters() if each.requires_grad], lr=3e-3)
    for step in range(steps):
        row = rows[step % len(rows)]
        model(input_ids=torch.tensor([row.ids]), labels=torch.tensor([row.ids])).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def linear_run(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tiny_model, tmp_path_factory.mktemp("linear") / "model", linears_alone=True)


@pytest.fixture(scope="module")
def whole_run(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tiny_model, tmp_path_factory.mktemp("whole") / "model", linears_alone=False)


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    return stored(tmp_path / "rows.parquet", CHATS, splits=["train"] * 32 + ["validation"] * 16)


def asked(base: Path, source: Path, state: Path, **changes: Any) -> dict[str, Any]:
    common = {"name": "Replies", "base": str(base), "source": str(source), "model": read_model_facts(base).model_dump()}
    return common | {"ranks": [4, 16, 0], "state": str(state)} | changes


def logits(base: Path, adapter: Path | None = None) -> np.ndarray:
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    return says(with_adapter(model, adapter) if adapter else model, IDS)


def apart(one: np.ndarray, other: np.ndarray) -> float:
    """The largest difference, as a share of the largest logit."""
    return float(np.abs(one - other).max() / np.abs(other).max())


def test_at_full_rank_the_adapter_says_what_the_full_run_says(tiny_model, linear_run, rows, listening_job, tmp_path, capsys):
    facts = run(asked(tiny_model, linear_run, tmp_path / "state", rows=str(rows)), listening_job)
    full, base = logits(linear_run), logits(tiny_model)
    found = logits(tiny_model, listening_job.out / "rank-full")
    with capsys.disabled():
        print(f"\nfull rank against the full run: max difference {np.abs(found - full).max():.2e}, relative {apart(found, full):.2e}")
    assert apart(found, full) < 1e-5
    assert apart(base, full) > 0.05  # it had learnt something
    assert (facts["linear"], facts["rest"]) == (1, [])
    fourth, sixteenth, whole = facts["ranks"]
    assert (whole["rank"], whole["energy"]) == (0, 1)
    assert whole["kept"] == pytest.approx(1, abs=1e-4)
    with capsys.disabled():
        print(f"r=4 keeps {fourth['kept']:.1%}, r=16 keeps {sixteenth['kept']:.1%} ({sixteenth['low']:.1%} to {sixteenth['high']:.1%})")
    assert fourth["energy"] < sixteenth["energy"] < 1
    assert fourth["size"] < sixteenth["size"] < whole["size"]
    assert 0.9 < sixteenth["kept"] < 1.1
    assert sixteenth["low"] <= sixteenth["kept"] <= sixteenth["high"]
    assert facts["rows"] == 16
    assert facts["full_loss"] < facts["base_loss"]


def test_what_no_low_rank_holds_is_told_and_is_all_that_full_rank_lacks(tiny_model, whole_run, listening_job, tmp_path, capsys):
    facts = run(asked(tiny_model, whole_run, tmp_path / "state", ranks=[0]), listening_job)
    rest = {each["part"]: each["share"] for each in facts["rest"]}
    assert set(rest) == {"words", "norms"}
    assert facts["linear"] + sum(rest.values()) == pytest.approx(1, abs=1e-5)
    base, full = load_file(tiny_model / WEIGHTS), load_file(whole_run / WEIGHTS)
    changes = {name: float((full[name] - base[name]).double().square().sum()) for name in full}
    norms = sum(change for name, change in changes.items() if "norm" in name)
    assert rest["norms"] == pytest.approx(norms / sum(changes.values()), abs=1e-5)
    # the base with the rest of the full run put into it, and the adapter on that, is the full run again
    shutil.copytree(tiny_model, tmp_path / "rest")
    save_file({name: base[name] if "proj" in name else full[name] for name in base}, tmp_path / "rest" / WEIGHTS, metadata={"format": "pt"})
    adapter = listening_job.out / "rank-full"
    without, found = apart(logits(tiny_model, adapter), logits(whole_run)), apart(logits(tmp_path / "rest", adapter), logits(whole_run))
    with capsys.disabled():
        print(f"\nwith norms and words changed: relative difference {without:.2e}, {found:.2e} once the rest is there as well")
    assert found < 1e-5 < without
    assert "not measured" in (adapter / "README.md").read_text()


def test_changed_tables_go_along_whole_where_that_is_asked_for(tiny_model, whole_run, listening_job, tmp_path):
    facts = run(asked(tiny_model, whole_run, tmp_path / "state", ranks=[0], tables=True), listening_job)
    assert {each["part"]: each["kept"] for each in facts["rest"]} == {"words": True, "norms": False}
    adapter = listening_job.out / "rank-full"
    full, base = load_file(whole_run / WEIGHTS), load_file(tiny_model / WEIGHTS)
    shutil.copytree(tiny_model, tmp_path / "norms")
    save_file(
        {name: full[name] if "norm" in name else base[name] for name in base}, tmp_path / "norms" / WEIGHTS, metadata={"format": "pt"}
    )
    assert apart(logits(tmp_path / "norms", adapter), logits(whole_run)) < 1e-5
    with Weights.of_model(tiny_model) as weights, read_adapter(adapter, weights, tied=True) as read:
        assert not read.untied  # both names of the one table stand for it
        assert "model.embed_tokens.weight" in read.changes


def test_tables_that_are_two_are_kept_one_by_one(listening_job, tmp_path):
    base = make_tiny_model(tmp_path / "base", tied=False, layers=1)
    full = shutil.copytree(base, tmp_path / "full")
    weights = load_file(base / WEIGHTS)
    weights["lm_head.weight"] += 0.1
    weights["model.layers.0.self_attn.q_proj.weight"] += torch.randn(64, 64) * 0.01
    save_file(weights, full / WEIGHTS, metadata={"format": "pt"})
    facts = run(asked(base, full, tmp_path / "state", ranks=[64], tables=True), listening_job)
    assert [(each["part"], each["kept"]) for each in facts["rest"]] == [("output", True)]
    assert [layer["name"] for layer in facts["layers"]] == ["model.layers.0.self_attn.q_proj"]  # the others did not change
    settings = json.loads((listening_job.out / "rank-64" / "adapter_config.json").read_text())
    assert (settings["modules_to_save"], settings["target_modules"]) == (["lm_head"], ["q_proj"])
    assert apart(logits(base, listening_job.out / "rank-64"), logits(full)) < 1e-5


def test_layers_that_did_not_change_in_some_blocks_are_named_whole(tiny_model, listening_job, tmp_path):
    full = shutil.copytree(tiny_model, tmp_path / "full")
    weights = load_file(tiny_model / WEIGHTS)
    weights["model.layers.1.mlp.up_proj.weight"] += torch.randn(128, 64) * 0.01
    save_file(weights, full / WEIGHTS, metadata={"format": "pt"})
    run(asked(tiny_model, full, tmp_path / "state", ranks=[64]), listening_job)
    settings = json.loads((listening_job.out / "rank-64" / "adapter_config.json").read_text())
    assert settings["target_modules"] == ["model.layers.1.mlp.up_proj"]
    assert apart(logits(tiny_model, listening_job.out / "rank-64"), logits(full)) < 1e-5


def test_an_adapter_of_every_rank_is_read_as_a_build_reads_it(tiny_model, linear_run, listening_job, tmp_path):
    run(asked(tiny_model, linear_run, tmp_path / "state"), listening_job)
    full = load_file(linear_run / WEIGHTS)
    for folder in ("rank-4", "rank-16", "rank-full"):
        with Weights.of_model(tiny_model) as weights, read_adapter(listening_job.out / folder, weights, tied=True) as read:
            assert read.swappable
            assert len(read.changes) == 14
            name = "model.layers.0.self_attn.k_proj.weight"  # of a smaller rank than the others at full rank
            merged = read.changes[name].applied(weights.rows(name, 0, 32), 0)
            far = float(np.abs(merged - full[name].numpy()).max())
            assert (far < 1e-5) == (folder == "rank-full")


def test_the_first_r_directions_are_the_best_of_rank_r():
    """Against numpy's own decomposition, for a wide and for a tall matrix."""
    change = torch.randn(40, 90, generator=torch.Generator().manual_seed(3))
    for matrix in (change, change.t().contiguous()):
        found = factors(matrix, rank=10**9)
        u, s, v = np.linalg.svd(matrix.double().numpy(), full_matrices=False)
        assert np.allclose(np.sqrt(found.squares), s, rtol=1e-6)
        assert found.total == pytest.approx((s**2).sum())
        for r in (1, 7, 40):
            ours = (found.b[:, :r] @ found.a[:r]).double().numpy()
            assert np.abs(ours - (u[:, :r] * s[:r]) @ v[:r]).max() < 1e-5


def test_a_change_of_low_rank_or_of_nothing_is_held_without_a_number_that_is_none():
    change = torch.outer(torch.arange(8.0), torch.ones(5))
    for matrix in (change, torch.zeros(8, 5)):
        found = factors(matrix, rank=5)
        assert torch.allclose(found.b @ found.a, matrix, atol=1e-6)


def test_an_attempt_that_was_killed_is_gone_on_from(tiny_model, linear_run, rows, tmp_path, monkeypatch):
    whole = ListeningJob(tmp_path / "whole")
    told = run(asked(tiny_model, linear_run, tmp_path / "other", rows=str(rows)), whole)
    killed = ListeningJob(tmp_path / "killed")
    with monkeypatch.context() as patch:
        patch.setattr(killed, "progress", progress_until(9))
        patch.setattr(extracting, "remove_folder", lambda folder: None)  # a process that is killed tidies nothing up
        with pytest.raises(KeyboardInterrupt):
            run(asked(tiny_model, linear_run, tmp_path / "state", rows=str(rows)), killed)
    assert len(list((tmp_path / "state").glob("*.json"))) == 9
    names: list[str] = []
    monkeypatch.setattr(Difference, "change", counting(Difference.change, names))
    again = ListeningJob(tmp_path / "again")
    assert run(asked(tiny_model, linear_run, tmp_path / "state", rows=str(rows)), again) == told
    assert len(names) == 14 - 9
    assert not (tmp_path / "state").exists()
    for path in sorted(whole.out.rglob("*.safetensors")):
        assert path.read_bytes() == (again.out / path.relative_to(whole.out)).read_bytes()


def progress_until(number: int) -> Any:
    def progress(done: float, total: float, unit: str = "") -> None:
        if done == number:
            raise KeyboardInterrupt

    return progress


def counting(method: Any, names: list[str]) -> Any:
    def change(self: Difference, name: str) -> torch.Tensor:
        names.append(name)
        found: torch.Tensor = method(self, name)
        return found

    return change


def test_a_stop_leaves_nothing(tiny_model, linear_run, tmp_path):
    job = ListeningJob(tmp_path / "attempt", stop_after=6)
    with pytest.raises(Stopped):
        run(asked(tiny_model, linear_run, tmp_path / "state"), job)
    assert not (tmp_path / "state").exists()
    assert not list(job.out.iterdir())


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"vocabulary": 400}, "The model knows 400 tokens and its base"),
        ({"hidden": 32}, "is not made as its base is"),
        ({"layers": 3}, "is not made as its base is"),
        ({}, "there is nothing to take out of it"),
    ],
)
def test_what_is_no_run_of_this_base_is_refused(tiny_model, listening_job, tmp_path, change, says):
    other = make_tiny_model(tmp_path / "other", **change) if change else tiny_model
    with pytest.raises(UserError, match=says):
        run(asked(tiny_model, other, tmp_path / "state"), listening_job)


def test_a_machine_that_is_too_small_says_so(tiny_model, linear_run, listening_job, tmp_path, monkeypatch):
    monkeypatch.setattr(extracting, "memory_size", lambda: 100 << 20)
    with pytest.raises(UserError, match=r"Taking its largest layer apart needs 0\.5 GB, and this machine has 0\.1 GB"):
        run(asked(tiny_model, linear_run, tmp_path / "state"), listening_job)


def test_a_rank_that_is_too_large_to_be_measured_is_made_all_the_same(tiny_model, linear_run, rows, listening_job, tmp_path, monkeypatch):
    needs = {4: extracting.memory_for(0, like=extracting.EvaluatedModel(name="", base="")) + 10**6}
    monkeypatch.setattr(extracting, "memory_size", lambda: needs[4] + 5 * 10**4)
    fourth, full = run(asked(tiny_model, linear_run, tmp_path / "state", rows=str(rows), ranks=[4, 0]), listening_job)["ranks"]
    assert fourth["kept"] is not None
    assert full["kept"] is None
    assert "GB to be measured" in full["why"]
    assert full["size"] > fourth["size"]


def test_layers_that_keep_their_weights_turned_around_are_turned_back(listening_job, tmp_path):
    from transformers import GPT2Config, GPT2LMHeadModel

    base, full = tmp_path / "base", tmp_path / "full"
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=90, n_embd=32, n_layer=1, n_head=2, n_positions=64))
    model.save_pretrained(base)
    for name, parameter in model.named_parameters():
        if name.endswith("c_attn.weight"):
            parameter.data += torch.randn_like(parameter) * 0.05
        if name.endswith("c_attn.bias"):
            parameter.data += 0.01
    model.save_pretrained(full)
    assert layout_of(base).turned
    facts = run(asked(base, full, tmp_path / "state", ranks=[0]), listening_job)
    assert [each["part"] for each in facts["rest"]] == ["biases"]
    with safe_open(listening_job.out / "rank-full" / "adapter_model.safetensors", framework="pt") as file:
        assert [file.get_slice(name).get_shape() for name in sorted(file.keys())] == [[32, 32], [96, 32]]
    merged = with_adapter(GPT2LMHeadModel.from_pretrained(base), listening_job.out / "rank-full")
    bias = "transformer.h.0.attn.c_attn.base_layer.bias"
    dict(merged.named_parameters())[bias].data += 0.01
    assert apart(says(merged, IDS), says(GPT2LMHeadModel.from_pretrained(full), IDS)) < 1e-5


def test_the_kept_share_and_its_interval():
    chance = np.random.default_rng(1)
    base = chance.uniform(2, 4, 100)
    full = base - chance.uniform(0.5, 1.5, 100)
    share, low, high = kept_share(base, full, base - 0.9 * (base - full))
    assert (share, low, high) == (pytest.approx(0.9), pytest.approx(0.9), pytest.approx(0.9))
    noisy = base - 0.9 * (base - full) + chance.normal(0, 0.3, 100)
    share, low, high = kept_share(base, full, noisy)
    assert low < share < high
    assert kept_share(base, base + 1, base) == (None, None, None)  # nothing was gained
    assert kept_share(base[:7], full[:7], noisy[:7])[1:] == (None, None)  # too few rows for an interval
    uneven = np.where(np.arange(100) < 97, base + 0.05, base - 9)
    assert kept_share(base, uneven, base)[0] == 0
    assert kept_share(base, uneven, base)[1:] == (None, None)  # some draws gain nothing

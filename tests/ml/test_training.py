"""LoRA on a tiny model made on the spot: it learns, reports, stops, saves, and gives the same run for the same seed."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from safetensors.torch import load_file  # noqa: E402
from torch.optim.optimizer import register_optimizer_step_post_hook  # noqa: E402

from studio.errors import UserError  # noqa: E402
from studio.ml.batches import epoch_batches, flattened, padded, token_row  # noqa: E402
from studio.ml.generating import answer  # noqa: E402
from studio.ml.loading import Arithmetic, Reader, choose_reader, load_base  # noqa: E402
from studio.ml.loop import learning_rate_factor  # noqa: E402
from studio.ml.loss import ChunkedLoss, head_of, summed_loss  # noqa: E402
from studio.ml.modelfacts import read_model_facts  # noqa: E402
from studio.ml.tokens import load_tokenizer  # noqa: E402
from studio.storage import read_manifest  # noqa: E402
from studio.training import DatasetFacts, HostFacts, Job, Stopped  # noqa: E402
from training_plugins.peft_lora import PeftLora  # noqa: E402

CPU = torch.device("cpu")
FP32 = Arithmetic(device=CPU, bf16=False)
BF16 = Arithmetic(device=CPU, bf16=True)
QUICK = {"batch_size": 4, "max_steps": 6, "learning_rate": 0.01, "rank": 4, "max_length": 64, "precision": "fp32", "evaluate_every": 3}


class RecordingJob(Job):
    """A job that keeps what it is told in a list."""

    def __init__(
        self,
        folder: Path,
        base: Path,
        rows: list[dict[str, Any]],
        *,
        validation: int = 4,
        prompts: tuple[str, ...] = ("Hello!",),
        shape: Literal["chat", "text", "preference"] = "chat",
    ):
        self.work, self.out, self.base = folder / "work", folder / "out", base
        self.checkpoints = self.work / "checkpoints"
        self.work.mkdir(parents=True)
        self.out.mkdir()
        self._rows = {"train": rows[validation:], "validation": rows[:validation]}
        self.model = read_model_facts(base, "tiny")
        self.data = DatasetFacts(name="support", shape=shape, rows=len(rows), train=len(rows) - validation, validation=validation)
        self.host = HostFacts(name="here", cpus=1, memory=8 << 30)
        self.prompts = list(prompts)
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.stop_when: Callable[[RecordingJob], bool] = lambda job: False

    def rows(self, split: Literal["train", "validation"]) -> Iterator[dict[str, Any]]:
        yield from self._rows[split]

    def stopping(self) -> bool:
        return self.stop_when(self)

    def phase(self, name: Any, text: str = "") -> None:
        self.events.append(("phase", {"name": name}))

    def progress(self, done: float, total: float, unit: str = "") -> None:
        self.events.append(("progress", {"done": done, "total": total, "unit": unit}))

    def metric(self, *, step: int, total: int, **values: float) -> None:
        self.events.append(("metric", {"step": step, "total": total, **values}))

    def sample(self, *, step: int, prompt: str, answer: str) -> None:
        self.events.append(("sample", {"step": step, "prompt": prompt, "answer": answer}))

    def checkpoint(self, *, step: int, folder: Path) -> None:
        self.events.append(("checkpoint", {"step": step, "folder": folder}))

    def note(self, text: str, *, level: Literal["info", "warning"] = "info") -> None:
        self.events.append(("note", {"text": text, "level": level}))

    def all(self, type_: str) -> list[dict[str, Any]]:
        return [body for kind, body in self.events if kind == type_]

    def values(self, name: str) -> list[float]:
        return [metric[name] for metric in self.all("metric") if name in metric]


def chat(question: str, reply: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": reply}]}


ROWS = [chat(f"What is {n} and {n}?", f"{n} and {n} is {2 * n}." + " Thank you for asking." * (n % 3)) for n in range(20)]


@pytest.fixture
def train(tmp_path: Path, tiny_model: Path) -> Callable[..., RecordingJob]:
    """`train(rank=8, ...)` trains the tiny model to the end and hands back its job."""

    def run(*, rows: list[dict[str, Any]] = ROWS, stop_when: Any = None, validation: int = 4, **settings: Any) -> RecordingJob:
        job = RecordingJob(tmp_path / f"attempt-{len(list(tmp_path.iterdir()))}", tiny_model, rows, validation=validation)
        if stop_when:
            job.stop_when = stop_when
        run.job = job  # type: ignore[attr-defined]
        plugin = PeftLora()
        assert plugin.train(plugin.Config(**QUICK | settings), job) == job.out
        return job

    return run


def test_a_run_learns_and_reports_every_step(train):
    job = train(max_steps=12)
    losses = job.values("loss")
    assert [metric["step"] for metric in job.all("metric") if "loss" in metric] == list(range(1, 13))
    assert losses[-1] < losses[0] - 0.3
    step = next(metric for metric in job.all("metric") if "loss" in metric)
    always = {"step", "total", "loss", "learning_rate", "grad_norm", "tokens_per_second", "memory", "tokens", "epoch", "padding"}
    assert always <= set(step) <= always | {"utilisation", "power", "energy"}
    assert step["total"] == 12 and step["tokens"] > 0 and step["memory"] > 1 << 20
    assert job.values("epoch")[-1] == pytest.approx(3.0)
    phases = [phase["name"] for phase in job.all("phase")]
    assert phases[:4] == ["tokenizing", "loading", "evaluating", "training"] and phases[-1] == "saving"


def test_validation_loss_and_samples_come_at_the_start_at_each_evaluation_and_at_the_end(train):
    job = train(max_steps=7, evaluate_every=3)
    looks = [metric for metric in job.all("metric") if "validation_loss" in metric]
    assert [look["step"] for look in looks] == [0, 3, 6, 7]
    assert looks[-1]["validation_loss"] < looks[0]["validation_loss"]
    assert [sample["step"] for sample in job.all("sample")] == [0, 3, 6, 7]
    assert all(sample["prompt"] == "Hello!" for sample in job.all("sample"))


def test_the_result_is_an_adapter_that_peft_loads(train, tiny_model):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    job = train()
    assert sorted(path.name for path in job.out.iterdir()) == ["README.md", "adapter_config.json", "adapter_model.safetensors"]
    settings = json.loads((job.out / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == "tiny" and settings["r"] == 4 and settings["peft_type"] == "LORA"
    assert "revision" not in settings and "auto_mapping" not in settings
    base = AutoModelForCausalLM.from_pretrained(tiny_model)
    ids = torch.arange(5)[None]
    before = base(ids).logits
    adapted = PeftModel.from_pretrained(base, job.out)
    assert (adapted(ids).logits - before).abs().max() > 1e-3
    assert "Validation loss" in (job.out / "README.md").read_text()


def test_the_same_seed_gives_the_same_losses_and_weights_and_another_seed_does_not(train):
    first, second, other = train(dropout=0.1), train(dropout=0.1), train(dropout=0.1, seed=7)
    assert first.values("loss") == second.values("loss") != other.values("loss")
    one, two = (load_file(job.out / "adapter_model.safetensors") for job in (first, second))
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("variant", ["lora", "rslora", "dora"])
def test_each_variant_trains_exactly_the_parameters_that_the_estimate_names(train, variant):
    job = train(variant=variant, max_steps=2)
    plugin = PeftLora()
    estimate = plugin.estimate(plugin.Config(**QUICK | {"variant": variant}), job.model, job.data, job.host)
    saved = load_file(job.out / "adapter_model.safetensors")
    assert sum(tensor.numel() for tensor in saved.values()) == estimate.trainable_parameters
    settings = json.loads((job.out / "adapter_config.json").read_text())
    assert (settings["use_rslora"], settings["use_dora"]) == (variant == "rslora", variant == "dora")


def test_only_the_named_targets_get_an_adapter(train):
    job = train(targets="q_proj, v_proj", max_steps=2)
    assert {name.split(".")[-3] for name in load_file(job.out / "adapter_model.safetensors")} == {"q_proj", "v_proj"}


def test_an_adapter_on_the_output_layer_learns_too(tmp_path, tiny_model_maker):
    job = RecordingJob(tmp_path / "attempt", tiny_model_maker(tmp_path / "untied", tied=False), ROWS, validation=0)
    plugin = PeftLora()
    plugin.train(plugin.Config(**QUICK | {"targets": ["lm_head"], "max_steps": 8}), job)
    saved = load_file(job.out / "adapter_model.safetensors")
    assert {name.split(".")[-3] for name in saved} == {"lm_head"} and any(
        "lora_B" in name and tensor.any() for name, tensor in saved.items()
    )
    assert job.values("loss")[-1] < job.values("loss")[0]


def test_bf16_learns_as_fp32_does(train):
    exact, rounded = (train(max_steps=10, learning_rate=1e-3, precision=precision) for precision in ("fp32", "bf16"))
    assert np.abs(np.subtract(exact.values("loss"), rounded.values("loss"))).max() < 0.05


def test_accumulated_small_batches_give_the_loss_of_one_large_batch(train):
    at_once, added_up = train(batch_size=4), train(batch_size=1, gradient_accumulation=4)
    assert added_up.values("loss") == pytest.approx(at_once.values("loss"), abs=1e-4)


def test_gradient_checkpointing_changes_no_loss(train):
    assert train(gradient_checkpointing="on").values("loss") == pytest.approx(train().values("loss"), abs=1e-5)


def test_checkpoints_are_sealed_and_the_last_two_and_the_best_are_kept(train):
    job = train(max_steps=8, evaluate_every=1)
    assert [checkpoint["step"] for checkpoint in job.all("checkpoint")] == list(range(1, 8))
    folders = sorted((job.work / "checkpoints").iterdir())
    looks = {
        metric["step"]: metric["validation_loss"] for metric in job.all("metric") if "validation_loss" in metric and 0 < metric["step"] < 8
    }
    best = min(looks, key=looks.__getitem__)
    assert [int(folder.name.removeprefix("step-")) for folder in folders] == sorted({best, 6, 7})
    files = read_manifest(folders[-1])["files"]
    random = {"random.json", "random.safetensors"}
    assert set(files) == random | {"weights.safetensors", "optimizer.safetensors", "state.json"}
    assert json.loads((folders[-1] / "state.json").read_text())["progress"]["steps"] == 7


def test_a_stop_keeps_what_was_learnt(train):
    job = train(max_steps=1000, evaluate_every=500, stop_when=lambda job: len(job.values("loss")) >= 3)
    assert len(job.values("loss")) == 3
    assert (job.out / "adapter_model.safetensors").is_file()
    assert "stopped early" in (job.out / "README.md").read_text()


def test_a_stop_is_heeded_within_an_evaluation(train):
    def once_in_second_evaluation(job: RecordingJob) -> bool:
        job.asked = getattr(job, "asked", False) or (len(job.values("loss")) == 3 and job.all("phase")[-1]["name"] == "evaluating")
        return job.asked

    job = train(max_steps=1000, evaluate_every=3, batch_size=1, stop_when=once_in_second_evaluation)
    assert len(job.values("validation_loss")) == 1 and len(job.values("loss")) == 3
    assert (job.out / "adapter_model.safetensors").is_file()


def test_a_stop_before_the_first_step_leaves_nothing(train):
    with pytest.raises(Stopped):
        train(stop_when=lambda job: bool(job.all("phase")))
    assert list(train.job.out.iterdir()) == []


def test_long_rows_are_cut_and_rows_with_nothing_to_learn_are_left_out_with_a_note(train):
    rows = [*ROWS, chat("long " * 100, "Never reached."), chat("Hi?", "word " * 100)]
    job = train(rows=rows, max_length=80)
    notes = [note["text"] for note in job.all("note")]
    assert "2 of 22 rows were longer than 80 tokens and were cut." in notes
    assert "1 of 22 rows were left out: nothing in them is to be learnt." in notes


def test_rows_that_all_lose_their_answers_are_refused(train):
    with pytest.raises(UserError, match="Raise the max length"):
        train(rows=[chat("word " * 100, "Yes.")] * 8, max_length=16)


def test_a_run_without_validation_rows_still_gives_samples(train):
    job = train(validation=0)
    assert job.values("validation_loss") == [] and job.all("sample")


def test_a_loss_that_breaks_ends_the_run_with_the_step_and_a_proposal_and_keeps_the_last_checkpoint(train):
    with pytest.raises(UserError, match=r"no longer a number at step 5.*Try again with 0\.0002") as caught:
        break_at(train, step=5)
    assert caught.value.fields == {"learning_rate": "Try 0.0002."}
    assert "checkpoint of step 3 is kept" in caught.value.message
    assert (train.job.work / "checkpoints" / "step-00000003" / "manifest.json").is_file()


def break_at(train: Any, *, step: int) -> None:
    """Makes a weight infinite just before a step, as a learning rate that is far too high does in the end."""
    calls = []

    def after_step(optimizer: Any, *_: Any) -> None:
        calls.append(1)
        if len(calls) == step - 1:
            with torch.no_grad():
                optimizer.param_groups[0]["params"][0].fill_(float("inf"))

    hook = register_optimizer_step_post_hook(after_step)
    try:
        train(max_steps=50, learning_rate=0.1, evaluate_every=3)
    finally:
        hook.remove()


# What the loop stands on


@pytest.mark.parametrize("arithmetic", [FP32, BF16])
def test_a_document_in_a_row_sees_nothing_of_its_neighbours(tiny_model, arithmetic):
    model = load_base(tiny_model, arithmetic=arithmetic)
    assert choose_reader(model, arithmetic=arithmetic).layout == "flattened"


def test_flattened_and_padded_batches_give_the_same_hidden_states(tiny_model):
    rows = [token_row(list(range(3, 3 + length)), [False] + [True] * (length - 1)) for length in (9, 4, 17)]
    model = load_base(tiny_model, arithmetic=FP32)
    end_to_end = Reader(model, arithmetic=FP32, layout="flattened")
    ours = end_to_end.hidden(flattened(rows, device=CPU))
    model.set_attn_implementation("sdpa")
    theirs = Reader(model, arithmetic=FP32, layout="padded").hidden(padded(rows, device=CPU, pad=0))
    assert torch.allclose(ours, theirs, atol=1e-5)


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_a_row_among_others_is_given_the_logits_that_it_has_alone(tmp_path, tiny_model_maker, kv_heads):
    base = tiny_model_maker(tmp_path / "base", kv_heads=kv_heads)
    rows = [token_row(list(range(3, 3 + length)), [False] + [True] * (length - 1)) for length in (9, 1, 4, 17)]
    model = load_base(base, arithmetic=FP32)
    alone = [model(input_ids=torch.tensor(row.ids.tolist())[None], use_cache=False).logits[0] for row in rows]
    for order in ([0, 1, 2, 3], [3, 2, 1, 0]):
        batch = flattened([rows[number] for number in order], device=CPU)
        together = model(**batch.inputs, use_cache=False).logits[0].split([rows[number].length for number in order])
        for number, logits in zip(order, together, strict=True):
            torch.testing.assert_close(logits, alone[number], rtol=1e-4, atol=1e-5)


def test_attention_keeps_to_a_sliding_window():
    from studio.ml.attention import document_attention

    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(1, 2, 10, 8, generator=generator) for _ in range(3))
    out, _ = document_attention(torch.nn.Identity(), query, key, value, None, sliding_window=3, documents=[(0, 10)])
    last = torch.nn.functional.scaled_dot_product_attention(query[:, :, 9:], key[:, :, 7:], value[:, :, 7:])
    assert torch.allclose(out[:, 9], last[:, :, 0], atol=1e-5)


def test_the_loss_in_pieces_has_the_value_and_gradients_of_the_plain_one(monkeypatch):
    monkeypatch.setattr("studio.ml.loss.CHUNK", 4)
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(11, 6, generator=generator, requires_grad=True)
    weight = torch.randn(20, 6, generator=generator, requires_grad=True)
    targets = torch.randint(0, 20, (11,), generator=generator)
    plain = torch.nn.functional.cross_entropy(hidden @ weight.t() * 0.5, targets, reduction="sum")
    expected = torch.autograd.grad(plain / 11, (hidden, weight))
    pieces = ChunkedLoss.apply(hidden, weight, targets, None, 0.5)
    assert torch.allclose(pieces, plain, atol=1e-4)
    for ours, theirs in zip(torch.autograd.grad(pieces / 11, (hidden, weight)), expected, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5)


def test_capped_and_scaled_logits_are_learnt_as_the_model_makes_them(tiny_model):
    model = load_base(tiny_model, arithmetic=FP32)
    model.config.final_logit_softcapping, model.config.logits_scaling = 5.0, 2.0
    head = head_of(model)
    hidden, targets = torch.randn(3, 64), torch.tensor([1, 2, 3])
    logits = 5.0 * torch.tanh(hidden @ head.layer.weight.t() / 2.0 / 5.0)
    expected = torch.nn.functional.cross_entropy(logits, targets, reduction="sum")
    assert torch.allclose(summed_loss(head, hidden, targets), expected, atol=1e-4)


def test_a_model_whose_logits_are_made_in_an_unknown_way_is_refused(tiny_model):
    model = load_base(tiny_model, arithmetic=FP32)
    model.config.logits_scaling = 3.0  # our head divides, this model does not: as with a family that is not known
    with pytest.raises(UserError, match="Choose a base model of another family"):
        choose_reader(model, arithmetic=FP32)


@pytest.mark.parametrize("layout", ["flattened", "padded"])
def test_an_epoch_reads_every_row_once_in_an_order_that_the_seed_decides(layout):
    lengths = [(7 * n) % 31 + 1 for n in range(103)]
    first = epoch_batches(lengths, batch_size=4, seed=1, epoch=0, layout=layout)
    assert sorted(row for batch in first for row in batch) == list(range(103))
    assert first == epoch_batches(lengths, batch_size=4, seed=1, epoch=0, layout=layout)
    assert first != epoch_batches(lengths, batch_size=4, seed=1, epoch=1, layout=layout)


def test_the_learning_rate_rises_then_falls_as_chosen():
    def at(scheduler: str) -> list[float]:
        return [learning_rate_factor(step, total=10, warmup=0.2, scheduler=scheduler) for step in range(10)]

    assert at("linear") == pytest.approx([0.5, 1, 1, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125])
    assert at("constant")[1:] == [1.0] * 9
    assert at("cosine")[6] == pytest.approx(0.5) and at("cosine")[9] < 0.05


def test_an_answer_is_the_same_each_time_and_as_without_a_cache(tiny_model):
    model, tokenizer = load_base(tiny_model, arithmetic=FP32), load_tokenizer(tiny_model)
    messages = [{"role": "user", "content": "Hello!"}]
    said = answer(model, tokenizer, messages, 8)
    assert said == answer(model, tokenizer, messages, 8)
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    start = len(ids)
    with torch.no_grad():
        while len(ids) < start + 8 and (token := int(model(torch.tensor([ids])).logits[0, -1].argmax())) != tokenizer.eos_token_id:
            ids.append(token)
    assert said == tokenizer.decode(ids[start:], skip_special_tokens=True).strip()

"""Learning from pairs of answers: each loss is its paper's formula, the gradients are exact, a run learns to choose and resumes exactly."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from safetensors.torch import load_file  # noqa: E402
from torch.nn.functional import log_softmax, logsigmoid, sigmoid  # noqa: E402

from studio.checkpoints import newest  # noqa: E402
from studio.errors import UserError  # noqa: E402
from studio.ml.batches import token_row  # noqa: E402
from studio.ml.loading import Arithmetic, choose_reader, load_base  # noqa: E402
from studio.ml.loss import head_of, token_losses  # noqa: E402
from studio.ml.preference import PairRow, Preference, joined, mismatched  # noqa: E402
from studio.ml.rows import read_rows  # noqa: E402
from studio.ml.tokens import load_tokenizer  # noqa: E402
from studio.ml.world import World  # noqa: E402
from studio.training import DatasetFacts, Stopped  # noqa: E402
from studio.training.preferences import preference_issues  # noqa: E402
from studio.training.testing import Case, check_events, read_events, worker  # noqa: E402
from tests.ml.test_training import QUICK, RecordingJob  # noqa: E402
from training_plugins.peft_lora import PeftLora  # noqa: E402

FP32 = Arithmetic(device=torch.device("cpu"), bf16=False)
KINDS = ("dpo", "orpo", "kto", "simpo")


def pair(question: str, better: str, worse: str) -> dict[str, Any]:
    return {
        "prompt": [{"role": "user", "content": question}],
        "chosen": [{"role": "assistant", "content": better}],
        "rejected": [{"role": "assistant", "content": worse}],
    }


PAIRS = [
    pair(f"What is {n} and {n}?", f"{n} and {n} is {2 * n}." + " Thank you." * (n % 3), "I do not know." * (1 + n % 2)) for n in range(20)
]
Attempt = Callable[..., RecordingJob]


@pytest.fixture
def attempt(tmp_path: Path, tiny_model: Path) -> Attempt:
    """`attempt(preference="dpo", …)` trains on pairs; `stop_when` pauses it, and `resume` goes on from there."""

    def run(*, stop_when: Any = None, resume: bool = False, rows: Any = PAIRS, **settings: Any) -> RecordingJob:
        job = RecordingJob(tmp_path / f"attempt-{len(list(tmp_path.iterdir()))}", tiny_model, rows, shape="preference")
        if stop_when:
            job.stop_when = stop_when
            job.pausing = job.stopping  # type: ignore[method-assign]
        if stop_when or resume:
            job.checkpoints = tmp_path / "states"
        job.resume = newest(job.checkpoints) if resume else None
        plugin = PeftLora()
        try:
            plugin.train(plugin.Config(**QUICK | settings), job)
        except Stopped:
            assert stop_when
        return job

    return run


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_learns_to_tell_the_better_answer(attempt: Attempt, kind: str) -> None:
    job = attempt(preference=kind, max_steps=12, learning_rate=0.003)
    losses, margins = job.values("loss"), job.values("validation_margin")
    assert losses[-1] < losses[0] and margins[-1] > margins[0]
    assert job.values("validation_accuracy")[-1] == 1.0
    assert {"step", "total", "validation_loss", "validation_accuracy", "validation_margin"} <= set(job.all("metric")[0])


def test_before_anything_is_learnt_dpo_and_kto_are_undecided(attempt: Attempt) -> None:
    assert attempt(preference="dpo", max_steps=1).values("loss")[0] == pytest.approx(0.6931, abs=1e-4)  # -log σ(0)
    assert attempt(preference="kto", max_steps=1).values("loss")[0] == pytest.approx(1.0, abs=1e-4)  # 2 - 2σ(0)


@pytest.mark.parametrize("kind", KINDS)
def test_a_paused_run_goes_on_with_the_same_losses_and_bytes(attempt: Attempt, kind: str) -> None:
    settings = {"preference": kind, "dropout": 0.1, "batch_size": 3, "evaluate_every": 2}
    whole = attempt(**settings)
    paused = attempt(stop_when=lambda job: len(job.values("loss")) >= 3, **settings)
    resumed = attempt(resume=True, **settings)
    assert paused.values("loss") + resumed.values("loss") == whole.values("loss")
    weights = [load_file(job.out / "adapter_model.safetensors") for job in (whole, resumed)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_a_worker_learns_from_pairs_and_says_what_their_loss_needs(tiny_model: Path, tmp_path: Path) -> None:
    config = {"rank": 4, "batch_size": 2, "max_length": 64}
    case = Case(plugin="peft_lora", folder=tmp_path, base=tiny_model, rows=PAIRS, config=config, requires=PeftLora.requires)
    with worker(case, name="pairs", config={"max_steps": 2, "preference": "kto"}) as process:
        events = list(read_events(process))
    end = check_events(case, events, name="pairs")
    assert end["status"] == "succeeded", end
    assert any(event["type"] == "note" and event["text"].startswith("KTO reads every pair") for event in events)
    assert [event["accuracy"] for event in events if event["type"] == "metric" and "accuracy" in event]
    shown = next(event for event in events if event["type"] == "rows")
    assert ["Better\n", False] in shown["rows"][0]["pieces"]


@pytest.fixture
def batch(tiny_model: Path) -> list[PairRow]:
    job = Rows()
    plugin = PeftLora()
    train, _ = read_rows(job, load_tokenizer(tiny_model), plugin.Config(max_length=64))
    return train[:4]


class Rows(RecordingJob):
    """Pairs and nothing else."""

    def __init__(self) -> None:
        self.data = DatasetFacts(name="pairs", shape="preference", rows=len(PAIRS), train=len(PAIRS), validation=0)
        self._rows = {"train": PAIRS, "validation": []}
        self.events = []
        self.stop_when = lambda job: False


@pytest.mark.parametrize("kind", KINDS)
def test_loss_and_gradients_are_those_of_the_formula(tiny_model: Path, batch: list[PairRow], kind: str) -> None:
    model = load_base(tiny_model, arithmetic=FP32)
    model.requires_grad_(True)
    objective = Preference(choose_reader(model, arithmetic=FP32), PeftLora.Config(preference=kind, batch_size=2), World())
    objective.prepare(model, batch, [], job=Rows())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)
    part = objective.part(batch)
    part.loss.backward()
    found = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    expected = by_the_paper(model, tiny_model, batch, kind)
    expected.backward()
    assert part.loss.item() == pytest.approx(expected.item(), rel=1e-4)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, rtol=2e-3, atol=2e-5)


def by_the_paper(model: Any, base: Path, rows: list[PairRow], kind: str) -> Any:
    """The sum over the rows, each read by itself with all of its logits."""

    def read(row: Any, with_model: Any) -> Any:
        ids = torch.tensor(row.ids.tolist())[None]
        logs = log_softmax(with_model(ids).logits[0, :-1].float(), dim=-1).gather(1, ids[0, 1:, None])[:, 0]
        return logs[torch.tensor(row.supervised[1:].tolist())]

    def ratio(row: Any) -> Any:
        with torch.no_grad():
            before = read(row, reference).sum()
        return read(row, model).sum() - before

    reference = load_base(base, arithmetic=FP32)
    if kind == "dpo":
        return sum(-logsigmoid(0.1 * (ratio(row.chosen) - ratio(row.rejected))) for row in rows)
    if kind == "kto":
        others = [joined(row.answers[0], rows[(place + 1) % len(rows)].answers[0]) for place, row in enumerate(rows)]
        distance = torch.stack([ratio(other) for other in others]).mean().clamp(min=0).detach()
        better = sum(1 - sigmoid(0.1 * (ratio(row.chosen) - distance)) for row in rows if row.chosen)
        return better + sum(1 - sigmoid(0.1 * (distance - ratio(row.rejected))) for row in rows if row.rejected)
    means = [(read(row.chosen, model).mean(), read(row.rejected, model).mean()) for row in rows]
    if kind == "simpo":
        return sum(-logsigmoid(2.0 * (better - worse) - 1.0) for better, worse in means)
    odds = [torch.log(torch.exp(mean) / (1 - torch.exp(mean))) for pair in means for mean in pair]
    ratios = [better - worse for better, worse in zip(odds[::2], odds[1::2], strict=True)]
    return sum(-better - 0.1 * logsigmoid(difference) for (better, _), difference in zip(means, ratios, strict=True))


def thumbs(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each pair as two rows: an answer that was liked, and one that was disliked."""
    return [{"prompt": row["prompt"], end: row[end]} for row in rows for end in ("chosen", "rejected")]


def test_kto_of_single_answers_is_its_formula_too(tiny_model: Path, batch: list[PairRow]) -> None:
    """A batch with a pair, a liked and a disliked answer: loss and gradients, and what each is worth in a step."""
    mixed = [batch[0], PairRow(batch[1].chosen, None), PairRow(None, batch[2].rejected), PairRow(batch[3].chosen, None)]
    model = load_base(tiny_model, arithmetic=FP32)
    model.requires_grad_(True)
    objective = Preference(choose_reader(model, arithmetic=FP32), PeftLora.Config(preference="kto", batch_size=2), World())
    objective.prepare(model, mixed, [], job=Rows())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)
    part = objective.part(mixed)
    part.loss.backward()
    found = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    expected = by_the_paper(model, tiny_model, mixed, "kto")
    expected.backward()
    assert part.loss.item() == pytest.approx(expected.item(), rel=1e-4)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, rtol=2e-3, atol=2e-5)
    assert [objective.weight(row) for row in mixed] == [1.0, 0.5, 0.5, 0.5]
    assert part.metrics["accuracy"][1] == 4
    heads = [objective.pieces(row, load_tokenizer(tiny_model))[0][0] for row in mixed]
    assert heads == ["Better\n", "Liked\n", "Disliked\n", "Liked\n"]


def test_a_run_learns_from_thumbs_up_and_down(attempt: Attempt) -> None:
    job = attempt(rows=thumbs(PAIRS), preference="kto", max_steps=12, learning_rate=0.003)
    losses = job.values("loss")
    assert losses[0] == pytest.approx(1.0, abs=1e-4)  # as of pairs: each answer counts as half of one
    assert losses[-1] < losses[0]
    assert job.values("validation_accuracy")[-1] == 1.0


def test_a_paused_run_on_thumbs_goes_on_with_the_same_losses(attempt: Attempt) -> None:
    settings: dict[str, Any] = {"rows": thumbs(PAIRS), "preference": "kto", "batch_size": 3, "evaluate_every": 2}
    whole = attempt(**settings)
    paused = attempt(stop_when=lambda job: len(job.values("loss")) >= 3, **settings)
    assert paused.values("loss") + attempt(resume=True, **settings).values("loss") == whole.values("loss")


@pytest.mark.parametrize(("kind", "name"), [("dpo", "DPO"), ("orpo", "ORPO"), ("simpo", "SimPO")])
def test_a_loss_that_needs_both_answers_says_so_before_and_while_rows_are_read(attempt: Attempt, kind: str, name: str) -> None:
    data = DatasetFacts(name="thumbs", shape="preference", rows=40, train=36, validation=4, unpaired=40, liked=20)
    errors = [issue for issue in preference_issues(PeftLora.Config(preference=kind), data, method="lora") if issue.level == "error"]
    assert [(issue.field, issue.message) for issue in errors] == [
        (
            "preference",
            f"Every row has one answer with a thumb up or down. {name} needs a better and a worse answer to each question: "
            "choose KTO, which learns from thumbs, or rows with both.",
        )
    ]
    some = data.model_copy(update={"unpaired": 3, "liked": 3})
    (error,) = [issue for issue in preference_issues(PeftLora.Config(preference=kind), some, method="lora") if issue.level == "error"]
    assert error.message.startswith("3 of 40 rows have one answer with a thumb up or down.")
    with pytest.raises(UserError, match=f"{name} needs a better and a worse answer"):
        attempt(rows=thumbs(PAIRS), preference=kind)


def test_kto_takes_thumbs_and_warns_where_they_all_point_one_way() -> None:
    data = DatasetFacts(name="thumbs", shape="preference", rows=40, train=36, validation=4, unpaired=40, liked=20)
    config = PeftLora.Config(preference="kto", learning_rate=1e-5)
    assert [issue.level for issue in preference_issues(config, data, method="lora")] == ["warning"]
    up = data.model_copy(update={"liked": 40})
    assert any("Every answer has a thumb up." in issue.message for issue in preference_issues(config, up, method="lora"))
    down = data.model_copy(update={"liked": 0})
    assert any("Every answer has a thumb down." in issue.message for issue in preference_issues(config, down, method="lora"))


def test_kto_compares_each_question_with_the_next_rows_answer() -> None:
    questions = [token_row([1, 2, 3], [False, False, True]), token_row([4, 5, 6, 7], [False, True, True, True])]
    rows = [PairRow(question, question) for question in questions]
    mismatched(rows)
    assert rows[0].other is not None and rows[0].other.ids.tolist() == [1, 2, 5, 6]  # cut to the longer of the two
    assert rows[1].other is not None and rows[1].other.ids.tolist() == [4, 3] and rows[1].other.targets == 1


@pytest.mark.parametrize("learnt", ["hidden", "head", "both"])
def test_losses_of_single_tokens_have_exact_gradients_under_any_outer_function(tiny_model: Path, learnt: str) -> None:
    torch.manual_seed(0)
    model = load_base(tiny_model, arithmetic=FP32)
    head = head_of(model)
    hidden = torch.randn(9, model.config.hidden_size)
    targets = torch.randint(0, model.config.vocab_size, (9,))
    outer = torch.linspace(-2, 3, 9)
    grads = []
    for exact in (False, True):
        states = hidden.clone().requires_grad_(learnt != "head")
        weight = head.layer.weight.requires_grad_(learnt != "hidden")
        weight.grad = None
        logits = states @ weight.t() * head.scale
        losses = torch.nn.functional.cross_entropy(logits, targets, reduction="none") if exact else token_losses(head, states, targets)
        (losses * outer).sum().backward()
        grads.append((states.grad, weight.grad))
    for ours, theirs in zip(*grads, strict=True):
        assert (ours is None) == (theirs is None)
        if ours is not None:
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_pairs_that_the_cut_made_equal_are_left_out(attempt: Attempt) -> None:
    long = "word " * 100
    job = attempt(rows=[*PAIRS, pair("Say it.", long + "yes", long + "no")], max_length=48, max_steps=1)
    assert any("1 of 21 rows were left out" in note["text"] for note in job.all("note"))


@pytest.mark.parametrize("kind", KINDS)
def test_each_loss_says_what_it_needs(kind: str) -> None:
    data = DatasetFacts(name="pairs", shape="preference", rows=20, train=19, validation=1)
    issues = preference_issues(PeftLora.Config(preference=kind, batch_size=1), data, method="lora")
    assert issues[0].level == "warning" and issues[0].field == "preference"
    assert [issue.field for issue in issues if issue.level == "error"] == (["batch_size"] if kind == "kto" else [])
    assert any(issue.field == "learning_rate" for issue in issues) == (kind != "orpo")
    chats = data.model_copy(update={"shape": "chat"})
    assert preference_issues(PeftLora.Config(preference=kind), chats, method="lora") == []

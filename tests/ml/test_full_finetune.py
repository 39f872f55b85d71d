"""Full fine-tuning on a tiny model: what learns, how it is rounded, what comes out, and that a broken-off run leaves no trace."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from safetensors.torch import load_file  # noqa: E402

from studio.checkpoints import newest  # noqa: E402
from studio.ml.loading import Arithmetic, load_base  # noqa: E402
from studio.ml.optimizers import PIECE, RoundingAdamW, freeze, parameter_groups, rounded  # noqa: E402
from studio.storage import commit_folder  # noqa: E402
from studio.training import DatasetFacts, HostFacts, Stopped  # noqa: E402
from studio.training.facts import Gpu  # noqa: E402
from studio.training.testing import TINY_MODEL, check_plugin  # noqa: E402
from tests.ml.engines import running  # noqa: E402
from tests.ml.test_resume import PausingJob  # noqa: E402
from tests.ml.test_training import ROWS, RecordingJob  # noqa: E402
from training_plugins.full_finetune import FullFinetune  # noqa: E402

QUICK = {"batch_size": 4, "max_steps": 6, "learning_rate": 0.003, "max_length": 64, "precision": "fp32", "evaluate_every": 3}
FP32 = Arithmetic(device=torch.device("cpu"), bf16=False)


def config(**settings: Any) -> FullFinetune.Config:
    return FullFinetune.Config(**settings)


@pytest.fixture
def train(tmp_path: Path, tiny_model: Path) -> Callable[..., RecordingJob]:
    """`train(weights="bf16", ...)` trains the tiny model and hands back its job; all jobs save their states into one folder."""

    def run(*, pause_when: Any = None, resume: bool = False, base: Path = tiny_model, **settings: Any) -> RecordingJob:
        job = PausingJob(tmp_path / f"attempt-{len(list(tmp_path.iterdir()))}", base, ROWS)
        if pause_when or resume:
            job.checkpoints = tmp_path / "states"
        job.stop_when = pause_when or job.stop_when
        job.resume = newest(job.checkpoints) if resume else None
        try:
            FullFinetune().train(config(**QUICK | settings), job)
        except Stopped:
            assert list(job.out.iterdir()) == []
        return job

    return run


def test_full_finetuning_passes_the_conformance_suite(tiny_model: Path) -> None:
    check_plugin(FullFinetune, base=tiny_model, config={"weights": "bf16"})


def test_the_result_is_a_model_of_its_own_that_transformers_loads(train, tiny_model):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    job = train(max_steps=12)
    assert job.values("loss")[-1] < job.values("loss")[0] - 0.3
    files = {path.name for path in job.out.iterdir()}
    assert files == {path.name for path in tiny_model.iterdir()} | {"README.md"}
    settings = json.loads((job.out / "config.json").read_text())
    assert settings["dtype"] == "bfloat16" and settings["tie_word_embeddings"] is True
    tensors = load_file(job.out / "model.safetensors")
    assert tensors.keys() == load_file(tiny_model / "model.safetensors").keys()
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    model = AutoModelForCausalLM.from_pretrained(job.out)
    assert torch.equal(model.get_input_embeddings().weight, model.get_output_embeddings().weight)
    assert AutoTokenizer.from_pretrained(job.out).chat_template
    card = (job.out / "README.md").read_text()
    assert "# tiny, fine-tuned" in card and "library_name: transformers" in card and "Training loss: " in card


def test_weights_in_bf16_learn_what_weights_in_fp32_learn(train):
    mixed, pure = train(max_steps=12, precision="auto"), train(max_steps=12, precision="auto", weights="bf16")
    assert pure.values("loss")[-1] == pytest.approx(mixed.values("loss")[-1], rel=0.02)


def in_the_fifth_step(job: RecordingJob) -> bool:
    return len(job.values("loss")) == 4


@pytest.mark.parametrize("weights", ["mixed", "bf16"])
def test_a_pause_leaves_no_trace(train, weights):
    whole, first = train(weights=weights, precision="auto"), train(weights=weights, precision="auto", pause_when=in_the_fifth_step)
    second = train(weights=weights, precision="auto", resume=True)
    assert first.values("loss") + second.values("loss") == whole.values("loss")
    assert (second.out / "model.safetensors").read_bytes() == (whole.out / "model.safetensors").read_bytes()


def test_what_is_frozen_stays_bit_by_bit(train, tiny_model_maker, tmp_path_factory):
    base = tiny_model_maker(tmp_path_factory.mktemp("untied"), tied=False, dtype="bfloat16")
    job = train(base=base, freeze_embeddings=True, freeze_layers=1)
    before, after = load_file(base / "model.safetensors"), load_file(job.out / "model.safetensors")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if "layers.1." in name} | {"model.norm.weight", "lm_head.weight"}


def test_every_layer_learns_as_fast_as_it_is_told(tiny_model):
    model = load_base(tiny_model, arithmetic=FP32)
    chosen = config(learning_rate=1e-3, layer_decay=0.5, embedding_rate=0.1, weight_decay=0.01)
    freeze(model, chosen)
    named = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = parameter_groups(model, dict(model.named_parameters()), chosen)
    rates = {named[id(parameter)]: (group["lr"], group["weight_decay"]) for group in groups for parameter in group["params"]}
    assert rates.keys() == {name for name, _ in model.named_parameters()}
    assert rates["model.norm.weight"] == (1e-3, 0.0)
    assert rates["model.layers.1.mlp.up_proj.weight"] == (1e-3, 0.01)
    assert rates["model.layers.0.mlp.up_proj.weight"] == (5e-4, 0.01)
    assert rates["model.embed_tokens.weight"] == (pytest.approx(2.5e-5), 0.01)
    assert groups[0]["lr"] == 1e-3


def test_rounding_is_right_on_average():
    values = torch.tensor([1.00001, -3.14159, 1e-20, 0.0, 2.5])
    noise = torch.arange(1 << 16, dtype=torch.int32)
    every = torch.stack([rounded(value.repeat(1 << 16), noise) for value in values])
    assert torch.equal(every.bfloat16().float(), every)
    assert torch.allclose(every.double().mean(dim=1), values.double(), rtol=1e-7, atol=0)


def stepped(optimizer: torch.optim.Optimizer, parameter: torch.nn.Parameter, *, steps: int) -> torch.Tensor:
    """What becomes of a parameter whose gradients are the same in every test: a direction with noise on it."""
    random = torch.Generator().manual_seed(0)
    for _ in range(steps):
        parameter.grad = (1e-3 + 1e-3 * torch.randn(parameter.shape, generator=random)).to(parameter.dtype)
        optimizer.step()
    return parameter.detach().float()


def test_small_steps_add_up_in_bf16_where_the_nearest_would_lose_them_all():
    start, rate, steps = torch.full((PIECE + 7,), 0.75), 1e-5, 30
    exact, ours, nearest = (torch.nn.Parameter(start.clone().to(dtype)) for dtype in (torch.float32, torch.bfloat16, torch.bfloat16))
    moved = stepped(torch.optim.AdamW([exact], lr=rate, weight_decay=0.1), exact, steps=steps).mean() - 0.75
    rounding = RoundingAdamW([{"params": [ours]}], lr=rate, weight_decay=0.1, seed=1)
    assert stepped(rounding, ours, steps=steps).mean() - 0.75 == pytest.approx(float(moved), rel=0.05)
    assert rounding.state[ours]["exp_avg_sq"].dtype is torch.bfloat16
    assert torch.equal(stepped(torch.optim.AdamW([nearest], lr=rate, weight_decay=0.1), nearest, steps=steps), start)


def test_the_same_seed_rounds_the_same_way():
    results = []
    for seed in (1, 1, 2):
        parameter = torch.nn.Parameter(torch.linspace(-1, 1, 1001).bfloat16())
        results.append(stepped(RoundingAdamW([{"params": [parameter]}], lr=1e-3, seed=seed), parameter, steps=3))
    assert torch.equal(results[0], results[1]) and not torch.equal(results[0], results[2])


CPU_HOST = HostFacts(name="cpu", cpus=2, memory=8 << 30)
GPU_HOST = HostFacts(
    name="gpu", cpus=8, memory=64 << 30, gpus=[Gpu(name="H100", memory=80 << 30)], bf16=True, packages={"bitsandbytes": "1"}
)
DATA = DatasetFacts(name="support", shape="chat", rows=200, train=180, validation=20)


def said(host: HostFacts, **settings: Any) -> list[tuple[str, str, str]]:
    issues = FullFinetune().check(config(**{"max_length": 64} | settings), TINY_MODEL, DATA, host)
    return [(issue.level, issue.field, issue.message) for issue in issues]


def test_nothing_speaks_against_the_defaults_or_against_8_bits_on_a_gpu():
    assert said(CPU_HOST) == []
    assert said(GPU_HOST, optimizer="paged_adamw_8bit") == []


@pytest.mark.parametrize(
    ("host", "chosen", "level", "field", "words"),
    [
        (CPU_HOST, {"optimizer": "adamw_8bit"}, "error", "optimizer", "needs a GPU, and this worker has none"),
        (GPU_HOST.model_copy(update={"packages": {}}), {"optimizer": "adamw_8bit"}, "error", "optimizer", "needs bitsandbytes"),
        (GPU_HOST, {"optimizer": "adamw_8bit", "weights": "bf16"}, "error", "optimizer", "loses small steps"),
        (GPU_HOST, {"precision": "fp16", "weights": "bf16"}, "error", "precision", "compute in bf16"),
        (CPU_HOST, {"weights": "bf16"}, "warning", "precision", "slow at bf16"),
        (CPU_HOST, {"freeze_layers": 3}, "error", "freeze_layers", "This model has 2 layers"),
        (CPU_HOST, {"freeze_layers": 1}, "warning", "freeze_layers", "Freeze them as well"),
        (CPU_HOST, {"learning_rate": 2e-4}, "warning", "learning_rate", "0.00002 suits most tasks"),
    ],
)
def test_what_cannot_work_is_said_in_plain_words(host, chosen, level, field, words):
    assert any(issue[:2] == (level, field) and words in issue[2] for issue in said(host, **chosen)), said(host, **chosen)


def test_the_result_can_be_talked_to(train, tmp_path):
    folder = tmp_path / "models" / "ours"
    commit_folder(train(max_steps=12).out, folder)
    with running(tmp_path / "models") as engine:
        lines = engine.ask(folder, messages=[{"role": "user", "content": "What is 2 and 2?"}], max_tokens=4)
    assert lines[-1]["done"]["completion_tokens"] > 0

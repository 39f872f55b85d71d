"""Every kind of LoRA learns, is killed without a trace, and leaves an adapter of the untouched base."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from peft import PeftModel  # noqa: E402
from torch.nn.modules.module import register_module_forward_hook  # noqa: E402
from transformers import AutoModelForCausalLM, LlamaForCausalLM  # noqa: E402

from studio.checkpoints import newest  # noqa: E402
from studio.storage import sha256_file  # noqa: E402
from studio.training import Stopped  # noqa: E402
from tests.ml.test_training import QUICK, ROWS, RecordingJob  # noqa: E402
from training_plugins.peft_lora import PeftLora  # noqa: E402

IDS = torch.arange(3, 40)[None]
KINDS: dict[str, dict[str, Any]] = {
    "pissa": {"initialization": "pissa", "variant": "rslora", "rank_pattern": {"q_proj": 2}},
    "olora": {"initialization": "olora", "alpha_pattern": {"v_proj": 6.0}},
    "dora from pissa": {"initialization": "pissa", "variant": "dora"},
    "eva": {"initialization": "eva", "rank_pattern": {"q_proj": 8, "down_proj": 2}},
    "lora+": {"lora_plus": 8.0, "dropout": 0.1},
    "tables": {"modules_to_save": ["embed_tokens"], "keep": "best"},
    "tables from pissa": {"modules_to_save": ["lm_head"], "initialization": "pissa", "lora_plus": 4.0, "table_rate": 0.5},
}


class PausingJob(RecordingJob):
    """Whoever stops it, pauses it."""

    def pausing(self) -> bool:
        return self.stopping()


@pytest.fixture
def attempt(tmp_path: Path, tiny_model: Path) -> Callable[..., RecordingJob]:
    """`attempt(pause_after=3, resume=False, base=…, **settings)` is one attempt at the same run; all save into one folder."""

    def run(*, pause_after: int = 0, resume: bool = False, base: Path = tiny_model, **settings: Any) -> RecordingJob:
        job = PausingJob(tmp_path / f"attempt-{len(list(tmp_path.iterdir()))}", base, ROWS)
        if pause_after:
            job.stop_when = lambda job: len(job.values("loss")) >= pause_after
        if pause_after or resume:
            job.checkpoints = tmp_path / "states"
            job.resume = newest(job.checkpoints) if resume else None
        plugin = PeftLora()
        try:
            plugin.train(plugin.Config(**QUICK | settings), job)
        except Stopped:
            assert pause_after
        return job

    return run


@pytest.mark.parametrize("kind", KINDS)
def test_a_pause_leaves_no_trace(attempt, kind):
    whole, first = attempt(**KINDS[kind]), attempt(pause_after=4, **KINDS[kind])
    second = attempt(resume=True, **KINDS[kind])
    for name in ("loss", "validation_loss", "learning_rate", "grad_norm"):
        assert first.values(name) + second.values(name) == whole.values(name), name
    assert whole.values("loss")[-1] < whole.values("loss")[0]
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        assert sha256_file(second.out / name) == sha256_file(whole.out / name)


def trained_logits(run: Callable[[], RecordingJob]) -> tuple[RecordingJob, Any]:
    """A run's job, and what its model itself says in the end."""
    models: list[Any] = []
    hook = register_module_forward_hook(lambda module, *_: models.__setitem__(slice(None), [module]) if is_whole(module) else None)
    job = run()
    hook.remove()
    with torch.no_grad():
        return job, models[0].eval()(input_ids=IDS).logits


def is_whole(module: Any) -> bool:
    return isinstance(module, LlamaForCausalLM)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_the_adapter_beside_the_untouched_base_says_what_the_trained_model_said(
    attempt, tmp_path, tiny_model, tiny_model_maker, kind, tied
):
    base = tiny_model if tied else tiny_model_maker(tmp_path / "untied", tied=False)
    job, trained = trained_logits(lambda: attempt(base=base, **KINDS[kind]))
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    with torch.no_grad():
        before = model(input_ids=IDS).logits
        adapted = PeftModel.from_pretrained(model, job.out).eval()
        after = adapted(input_ids=IDS).logits
        merged = adapted.merge_and_unload()(input_ids=IDS).logits
    assert (trained - before).abs().max() > 0.05
    assert torch.allclose(after, trained, atol=2e-5)
    assert torch.allclose(merged, trained, atol=2e-5)
    assert json.loads((job.out / "adapter_config.json").read_text())["init_lora_weights"] is True

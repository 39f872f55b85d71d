"""Every kind of LoRA learns, is killed without a trace, and leaves an adapter of the untouched base."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from peft import PeftModel  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402
from torch.nn.modules.module import register_module_forward_hook  # noqa: E402
from transformers import AutoModelForCausalLM, LlamaForCausalLM  # noqa: E402

from studio.checkpoints import newest  # noqa: E402
from studio.ml import llamacpp  # noqa: E402
from studio.ml.adapters import add_matrices, train_tables  # noqa: E402
from studio.ml.gguf.exporting import export  # noqa: E402
from studio.ml.gguf.merging import write_merged  # noqa: E402
from studio.ml.gguf.serving import prepare  # noqa: E402
from studio.ml.loading import load_base  # noqa: E402
from studio.ml.lora_init import as_plain_change, begin_from_inputs, lora_layers, matrices, olora, pissa  # noqa: E402
from studio.storage import commit_folder, sha256_file  # noqa: E402
from studio.training import DatasetFacts, HostFacts, Stopped  # noqa: E402
from studio.training.facts import Gpu, Linear, ModelFacts  # noqa: E402
from studio.training.testing import TINY_MODEL  # noqa: E402
from tests.ml.test_training import BF16, FP32, QUICK, ROWS, RecordingJob  # noqa: E402
from training_plugins.peft_lora import PeftLora  # noqa: E402

IDS = torch.arange(3, 40)[None]
KINDS: dict[str, dict[str, Any]] = {
    "pissa": {"initialization": "pissa", "variant": "rslora", "rank_pattern": {"q_proj": 2}},
    "olora": {"initialization": "olora", "alpha_pattern": {"v_proj": 6.0}},
    "dora from pissa": {"initialization": "pissa", "variant": "dora"},
    "eva": {"initialization": "eva", "rank_pattern": {"q_proj": 8, "down_proj": 2}},
    "qlora": {"quantization": "4bit", "dropout": 0.1},
    "8 bits": {"quantization": "8bit", "initialization": "eva"},
    "lora+": {"lora_plus": 8.0, "dropout": 0.1},
    "tables beside 4 bits": {"quantization": "4bit", "modules_to_save": ["embed_tokens", "lm_head"], "variant": "dora"},
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
        job.prompts = []
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


@pytest.mark.parametrize("chosen", [{"rank_pattern": {"q_proj": 2}}, {"modules_to_save": ["lm_head"]}, {"variant": "dora", "rank": 3}])
@pytest.mark.parametrize("tied", [True, False])
def test_the_estimate_names_exactly_what_learns(tiny_model, tiny_model_maker, tmp_path, chosen, tied):
    base = tiny_model if tied else tiny_model_maker(tmp_path / "untied", tied=False)
    job = PausingJob(tmp_path / "attempt", base, ROWS)
    config = PeftLora.Config(**QUICK | chosen)
    model = add_matrices(load_base(base, arithmetic=FP32), config)
    train_tables(model, config.modules_to_save, dtype=torch.float32)
    learns = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    assert PeftLora().estimate(config, job.model, job.data, job.host).trainable_parameters == learns


def said(settings: dict[str, Any], *, base: ModelFacts = TINY_MODEL, **host: Any) -> dict[str, str]:
    """`{field: level and message}` of what the plugin has to say about settings."""
    data = DatasetFacts(name="rows", shape="chat", rows=1000, train=950, validation=50)
    there = HostFacts(name="here", cpus=2, memory=64 << 30, **host)
    issues = PeftLora().check(PeftLora.Config(**settings), base, data, there)
    return {issue.field: f"{issue.level}: {issue.message}" for issue in issues}


@pytest.mark.parametrize(
    ("chosen", "field", "sentence"),
    [
        ({"rank_pattern": {"q_projj": 4}}, "rank_pattern", "error: q_projj gets no adapter. These layers do: down_proj, gate_proj"),
        (
            {"targets": ["q_proj"], "alpha_pattern": {"v_proj": 4.0}},
            "alpha_pattern",
            "error: v_proj gets no adapter. These layers do: q",
        ),
        (
            {"rank_pattern": {"q_proj": 128}},
            "rank_pattern",
            "warning: q_proj would count 0.12 times as much .* alpha of 256 it",
        ),
        ({"initialization": "pissa", "dropout": 0.1}, "dropout", "warning: .* Set it to 0"),
        ({"initialization": "olora", "learning_rate": 2e-4}, "learning_rate", "warning: OLoRA moves the model further"),
        ({"initialization": "olora"}, "initialization", "note: The result is stored with rank 32, twice the trained one"),
        ({"initialization": "pissa", "quantization": "4bit"}, "initialization", "error: PiSSA and OLoRA need the base's exact weights"),
        ({"quantization": "4bit"}, "quantization", "error: 4bit needs the package bitsandbytes"),
        (
            {"lora_plus": 16.0, "learning_rate": 1e-3},
            "lora_plus",
            "warning: B would learn at 0.016, which is fast. .* of 0.0001",
        ),
        ({"variant": "dora"}, "variant", "note: DoRA takes about one and a half times as long"),
        ({"modules_to_save": ["mlp"]}, "modules_to_save", "error: mlp cannot be trained in full here. embed_tokens and lm_head can"),
        ({"modules_to_save": ["lm_head"], "targets": ["lm_head", "q_proj"]}, "modules_to_save", "error: lm_head stands among the targets"),
        ({"modules_to_save": ["embed_tokens"]}, "modules_to_save", "note: The adapter grows by 0 MB. This model's output layer is its emb"),
    ],
)
def test_what_settings_need_is_said_beside_them(chosen, field, sentence):
    base = TINY_MODEL if "lm_head" not in chosen.get("targets", []) else with_output_layer()
    assert re.match(sentence, said(chosen, base=base)[field])


def with_output_layer() -> ModelFacts:
    head = Linear(name="lm_head", inputs=64, outputs=512, count=1)
    return TINY_MODEL.model_copy(update={"tied": False, "linears": [*TINY_MODEL.linears, head]})


def test_quantization_runs_where_its_package_is():
    there = {"packages": {"bitsandbytes": "0.50.2"}}
    assert said({"quantization": "8bit"}, **there)["quantization"].startswith("note: On a processor")
    assert "quantization" not in said({"quantization": "4bit"}, gpus=[Gpu(name="L4", memory=24 << 30)], **there)
    assert said({"quantization": "8bit", "variant": "dora"}, **there)["quantization"].startswith("error: DoRA")


@pytest.mark.parametrize(
    ("pattern", "sentence"), [({"q.*": 4}, "no name of a layer"), ({"q_proj": 0}, "above 0"), ({"q_proj": 513}, "at most 512")]
)
def test_a_pattern_is_names_and_ranks(pattern, sentence):
    with pytest.raises(ValueError, match=sentence):
        PeftLora.Config(rank_pattern=pattern)


@pytest.mark.parametrize("quantization", ["4bit", "8bit"])
def test_gradients_go_through_a_quantized_base_also_after_it_was_looked_at(tiny_model, quantization):
    def gradient(bits: str, *, looked_at: bool) -> Any:
        torch.manual_seed(0)
        model = add_matrices(load_base(tiny_model, arithmetic=FP32, quantization=bits), PeftLora.Config(rank=4))
        for layer in lora_layers(model).values():
            torch.nn.init.normal_(matrices(layer)[1], std=0.1)
        if looked_at:
            with torch.no_grad():
                model.eval()(input_ids=IDS)
        model.train()(input_ids=IDS, labels=IDS).loss.backward()
        return torch.cat([matrix.grad.flatten() for layer in lora_layers(model).values() for matrix in matrices(layer)])

    fresh, seen, exact = gradient(quantization, looked_at=False), gradient(quantization, looked_at=True), gradient("none", looked_at=False)
    assert torch.allclose(seen, fresh, rtol=1e-3, atol=1e-6)
    assert torch.cosine_similarity(seen, exact, dim=0) > 0.95


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
@pytest.mark.parametrize("kind", [kind for kind, settings in KINDS.items() if "quantization" not in settings])
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
    assert torch.allclose(merged, trained, atol=1e-4)  # the sum is rounded once more
    write_merged(base=base, adapter=job.out, precision="f32", folder=tmp_path / "merged")
    with torch.no_grad():
        written = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")(input_ids=IDS).logits
    assert torch.allclose(written, trained, atol=1e-4)
    assert json.loads((job.out / "adapter_config.json").read_text())["init_lora_weights"] is True


@pytest.mark.parametrize("tied", [True, False])
def test_tables_that_were_trained_in_full_come_into_the_gguf_and_the_playground(attempt, tmp_path, tiny_model, tiny_model_maker, tied):
    base = tiny_model if tied else tiny_model_maker(tmp_path / "untied", tied=False)
    job, trained = trained_logits(lambda: attempt(base=base, **KINDS["tables from pissa"]))
    export(base=base, adapter=job.out, quantization="f16", target=tmp_path / "merged.gguf", name="tiny")
    sealed = tmp_path / "sealed"
    sealed.mkdir()
    for name, folder in (("base", base), ("adapter", job.out)):
        commit_folder(shutil.copytree(folder, tmp_path / f"{name}.part"), sealed / name)
    served = prepare(base=sealed / "base", adapter=sealed / "adapter", cache=tmp_path / "cache")
    assert served.adapter is None
    for path in (tmp_path / "merged.gguf", served.model):
        with llamacpp.Model(path) as model:
            assert np.abs(model.logits(IDS[0].tolist()) - trained[0].numpy()).max() < 0.02
    assert (trained - AutoModelForCausalLM.from_pretrained(base)(input_ids=IDS).logits).abs().max() > 0.1


def test_a_table_of_its_own_for_the_output_of_a_base_that_shares_it_is_written_beside_the_words(attempt, tmp_path, tiny_model):
    job = attempt(max_steps=1, modules_to_save=["lm_head"])
    file = job.out / "adapter_model.safetensors"
    tensors = load_file(file)
    tensors["base_model.model.lm_head.weight"] += 0.1 * torch.randn_like(tensors["base_model.model.lm_head.weight"])
    save_file(tensors, file)
    export(base=tiny_model, adapter=job.out, quantization="f16", target=tmp_path / "merged.gguf", name="tiny")
    adapted = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_model), job.out).eval()
    with torch.no_grad(), llamacpp.Model(tmp_path / "merged.gguf") as model:
        assert np.abs(model.logits(IDS[0].tolist()) - adapted(input_ids=IDS).logits[0].numpy()).max() < 0.02


@pytest.mark.parametrize("begin", [pissa, olora])
@pytest.mark.parametrize("shape", [(300, 200), (40, 100)])
def test_a_beginning_is_a_part_of_the_weight(begin, shape):
    weight = torch.randn(shape) @ torch.diag(torch.logspace(0, -3, shape[1]))
    a, b = begin(weight, rank=8, scale=2.0)
    assert a.shape == (8, shape[1]) and b.shape == (shape[0], 8)
    if begin is pissa:
        best = torch.linalg.svdvals(weight)[8:].norm()
        assert (weight - 2.0 * b @ a).norm() < 1.01 * best
        assert torch.allclose(a.norm(dim=1), b.norm(dim=0), rtol=1e-3)
    else:
        assert torch.allclose(b.T @ b, torch.eye(8), atol=1e-5)


def test_a_rank_above_the_weights_own_is_filled_with_zeros():
    a, b = pissa(torch.randn(20, 6), rank=9, scale=1.0)
    assert a.shape == (9, 6) and b.shape == (20, 9) and not a[6:].any() and not b[:, 6:].any()
    change = as_plain_change((torch.randn(9, 6), torch.randn(20, 9)), (a, b))
    assert change[0].shape == (18, 6) and change[1].shape == (20, 18)


def test_a_small_change_of_large_weights_survives_half_precision():
    first = torch.randn(8, 64) * 10, torch.randn(48, 8) * 10
    now = first[0] + 1e-3 * torch.randn(8, 64), first[1] + 1e-3 * torch.randn(48, 8)
    change = (now[1].double() @ now[0].double() - first[1].double() @ first[0].double()).float()
    a, b = as_plain_change(now, first)
    assert torch.allclose(b @ a, change, atol=1e-4 * float(change.abs().max()))
    halves = b.half().float() @ a.half().float()
    assert (halves - change).norm() < 2e-3 * change.norm()


def test_eva_begins_with_the_directions_in_which_inputs_vary_most_also_under_autocast(tiny_model):
    model = add_matrices(load_base(tiny_model, arithmetic=BF16), PeftLora.Config(rank=6, rank_pattern={"q_proj": 3}))
    layer = model.get_base_model().model.layers[1].self_attn.q_proj
    inputs: list[Any] = []
    hook = layer.register_forward_pre_hook(lambda _, arguments: inputs.append(arguments[0][0].float()))
    batches = [torch.randint(3, 300, (1, 200), generator=torch.manual_seed(seed)) for seed in range(4)]
    with BF16.autocast():
        begun = begin_from_inputs(model, batches, lambda ids: model(input_ids=ids))
    hook.remove()
    assert begun == len(lora_layers(model)) == 14
    a, b = matrices(layer)
    seen = torch.cat(inputs) - torch.cat(inputs).mean(dim=0)
    assert not b.any() and torch.allclose(a @ a.T, torch.eye(3), atol=1e-4)
    assert (seen @ a.T).square().sum() > 0.95 * torch.linalg.svdvals(seen)[:3].square().sum()

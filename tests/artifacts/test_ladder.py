"""The files of one source beside each other: what each needs and loses, and which one to take."""

import pytest

from studio.artifacts import ladder
from studio.artifacts.ladder import memory_needed, recommend, rungs
from studio.artifacts.models import Build
from studio.training import ModelFacts
from studio.workspaces.services import create_client, create_project
from tests.fixtures import MODEL_FACTS, make_artifact, make_build, make_member, make_order

LLAMA_8B = ModelFacts(
    **MODEL_FACTS
    | {"parameters": 8_030_000_000, "hidden_size": 4096, "layers": 32, "vocabulary": 128_256, "heads": 32, "kv_heads": 8, "head_size": 128}
)
SIZES = {"f16": 16, "q8_0": 8, "q6_k": 6, "q5_k_m": 5, "q4_k_m": 4, "q2_k": 2}


def steps(world, **losses):
    """A ladder with these mean KLs, or (mean KL, perplexity) with 10 of the merged model."""
    order = make_order(world.owner, kind="train", client=world.client)
    source = make_artifact(order, world.project, {"a": b"a"}, base_model=world.base)
    for name, loss in losses.items():
        kl, perplexity = loss if isinstance(loss, tuple) else (loss, None)
        figures = {"mean_kl": kl} | ({"perplexity": perplexity, "perplexity_reference": 10.0} if perplexity else {})
        make_build(world.owner, source, quantization=name, content=b"g" * SIZES[name] * 1000, **figures)
    return rungs(world.owner, source)


def picked(found):
    chosen = [step for step in found if step.recommended]
    assert len(chosen) == 1
    return chosen[0]


def test_steps_stand_from_the_largest_to_the_smallest_with_their_figures(acme):
    build = make_build(acme.owner, acme.artifact, quantization="f16", content=b"g" * 90, max_kl=0.5, top1=0.99, tokens_per_second=81.5)
    found = rungs(acme.owner, acme.artifact)
    assert [(step.quantization, step.size) for step in found] == [("f16", 90), ("q8_0", 4)]
    assert (found[0].build, found[0].max_kl, found[0].top1, found[0].tokens_per_second) == (build, 0.5, 0.99, 81.5)
    assert (found[0].bits, found[1].bits, found[1].perplexity, found[1].wins) == (16.0, 8.5, None, None)


def test_only_gguf_files_that_passed_stand_on_it(acme):
    make_build(acme.owner, acme.artifact, quantization="q4_k_m", passed=False)
    make_build(acme.owner, acme.artifact, quantization="f16", kind=Build.Kind.MERGED)
    make_build(acme.owner, acme.artifact, quantization="f16", kind=Build.Kind.GGUF_ADAPTER)
    assert [step.quantization for step in rungs(acme.owner, acme.artifact)] == ["q8_0"]


def test_the_newest_of_the_same_type_counts_and_importance_is_a_step_of_its_own(acme):
    newest = make_build(acme.owner, acme.artifact, content=b"newest")
    plain = {"mean_kl": 0.2, "perplexity": 11.0, "size": 4}
    careful = make_build(acme.owner, acme.artifact, quantization="q4_k_m", importance=True, content=b"gg", plain=plain)
    found = rungs(acme.owner, acme.artifact)
    assert [(step.build, step.importance) for step in found] == [(newest, False), (careful, True)]
    assert (found[0].plain, found[1].plain) == (None, plain)


def test_a_base_models_ladder_shows_what_the_member_may_see(acme):
    other = create_project(acme.owner, client=create_client(acme.owner, name="Globex"), name="Theirs")
    ours = make_build(acme.owner, acme.base, project=acme.project)
    theirs = make_build(acme.owner, acme.base, project=other, quantization="q4_k_m", content=b"gg")
    narrow = make_member(acme.workspace, role="viewer", email="max@example.com", clients=[acme.client])
    assert {step.build for step in rungs(acme.owner, acme.base)} == {ours, theirs}
    assert [step.build for step in rungs(narrow, acme.base)] == [ours]


def test_the_smallest_that_is_hard_to_tell_apart_is_recommended_with_the_reason(acme):
    found = steps(acme, f16=(0.0001, 10.0), q8_0=(0.004, 10.02), q6_k=(0.03, 10.08), q4_k_m=(0.16, 10.9))
    chosen = picked(found)
    assert chosen.quantization == "q6_k"
    assert chosen.reason == (
        "The smallest file whose answers are hard to tell from the original's: 0.03 nats per token apart, and a perplexity 0.8% higher. "
        "Smaller ones lose more."
    )
    assert [step.reason for step in found if not step.recommended] == ["", "", ""]


def test_a_small_difference_with_a_higher_perplexity_is_not_close(acme):
    assert picked(steps(acme, q8_0=(0.004, 10.0), q4_k_m=(0.04, 10.2))).quantization == "q8_0"
    assert picked(steps(acme, q8_0=(0.004, 10.0), q4_k_m=(0.04, 9.8))).quantization == "q4_k_m"


def test_where_none_is_close_the_one_that_loses_least_is_recommended(acme):
    chosen = picked(steps(acme, q5_k_m=(0.3, 12.0), q4_k_m=(0.1, 11.0), q2_k=(0.9, 20.0)))
    assert chosen.quantization == "q4_k_m"
    assert chosen.reason.startswith(
        "None stays within 0.05 nats of the original and 1 % of its perplexity. This one loses the least: 0.1 nats"
    )


def test_a_file_alone_is_not_called_the_smallest(acme):
    assert picked(steps(acme, q8_0=0.01)).reason == "Its answers are hard to tell from the original's: 0.01 nats per token apart."
    assert "Smaller" not in picked(steps(acme, q8_0=0.01, q4_k_m=0.02)).reason


def test_figures_that_are_none_recommend_nothing(acme):
    assert not any(step.recommended for step in steps(acme, q8_0=None, q4_k_m=None))
    assert recommend([]) == []


def test_memory_is_the_file_a_conversation_and_the_buffers():
    # llama.cpp says of Llama 3 8B with 4,096 tokens: 512 MiB of keys and values, 258.5 MiB of buffers on a processor
    needed = memory_needed(0, LLAMA_8B) - ladder.PROGRAM
    assert needed == pytest.approx((512 + 258.5) * (1 << 20), rel=0.01)


@pytest.mark.parametrize(
    ("size", "first"),
    [(105_000_000, "a phone with 6 GB"), (4_900_000_000, "a GPU with 8 GB"), (8_500_000_000, "a laptop with 16 GB"), (10**12, None)],
)
def test_devices_are_told_in_plain_words_from_the_smallest(acme, size, first):
    build = acme.build
    build.artifact.files = {"a.gguf": {"size": size, "sha256": "0"}}
    devices = ladder.rung(build, LLAMA_8B).devices
    assert (devices[0] if devices else None) == first

"""LoRA, QLoRA or full: what the advisor says of a case, rule by rule."""

import math

import pytest

from studio.training.advisor import GOALS, Price, Surveyed, advise
from studio.training.capacity import capacity
from studio.training.facts import DatasetFacts, Gpu, HostFacts, Linear, ModelFacts, TokenFacts
from studio.training.literature import FINDINGS
from studio.training.memory import lora_parameters
from studio.training.rangetest import RateRange, found_range, is_over, rates
from training_plugins.full_finetune import FullFinetune
from training_plugins.peft_lora import PeftLora

PACKAGES = dict.fromkeys(("torch", "transformers", "peft", "safetensors"), "1")
PC = HostFacts(name="pc-1", cpus=2, memory=16 << 30, bf16=True, gflops=200, traffic=5e9, packages=PACKAGES)
CARD = HostFacts(
    name="card-1",
    cpus=8,
    memory=64 << 30,
    gpus=[Gpu(name="Card", memory=11 << 30)],
    bf16=True,
    gflops=50_000,
    packages=PACKAGES | {"bitsandbytes": "1"},
)
PLUGINS = {"peft_lora": PeftLora(), "full_finetune": FullFinetune()}


def model(name, *, parameters, hidden, inner, layers, heads, kv_heads, vocabulary, tied):
    head = hidden // heads
    shapes = [
        ("q_proj", hidden, hidden),
        ("k_proj", hidden, kv_heads * head),
        ("v_proj", hidden, kv_heads * head),
        ("o_proj", hidden, hidden),
    ]
    shapes += [("gate_proj", hidden, inner), ("up_proj", hidden, inner), ("down_proj", inner, hidden)]
    return ModelFacts(
        name=name,
        architecture="LlamaForCausalLM",
        family="llama",
        parameters=parameters,
        hidden_size=hidden,
        layers=layers,
        intermediate_size=inner,
        vocabulary=vocabulary,
        heads=heads,
        kv_heads=kv_heads,
        head_size=head,
        context_length=2048,
        tied=tied,
        dtype="bfloat16",
        size=2 * parameters,
        linears=[Linear(name=each, inputs=inputs, outputs=outputs, count=layers) for each, inputs, outputs in shapes],
        chat_template=True,
    )


SMALL = model("SmolLM2", parameters=134_515_008, hidden=576, inner=1536, layers=30, heads=9, kv_heads=3, vocabulary=49152, tied=True)
SEVEN = model("Seven", parameters=6_738_415_616, hidden=4096, inner=11008, layers=32, heads=32, kv_heads=32, vocabulary=32000, tied=False)


def rows(count=1000, *, supervised=150_000, tokens=True, shape="chat"):
    measured = TokenFacts(total=2 * supervised, supervised=supervised, p50=200, p95=400, p99=500, longest=800) if tokens else None
    return DatasetFacts(name="Replies v1", shape=shape, rows=count, train=count, validation=0, tokens=measured)


def asked(base=SMALL, data=None, hosts=(PC,), **case):
    return advise(base, data or rows(), list(hosts), **({"plugins": PLUGINS} | case))


def surveyed(**changes):
    return Surveyed(**({"rows": 32, "tokens": 2000, "loss": 2 * math.log(2), "surprising": 0.1, "seconds": 60} | changes))


def said(advice):
    return " ".join(reason.text for reason in advice.recommendation.reasons)


def test_for_a_style_or_a_task_an_adapter_is_proposed_with_its_own_settings():
    advice = asked()
    assert (advice.recommendation.method, advice.recommendation.sentence) == ("lora", "LoRA at rank 16.")
    assert "which is enough" in said(advice)
    assert "of the memory of full fine-tuning" in said(advice)
    assert advice.recommendation.settings == {"warmup": 0.03}  # all else stays as the plugin has it


def test_every_method_stands_beside_the_others_with_the_plugins_own_figures():
    advice = asked(clients=20, prices={"pc-1": Price(per_hour=2, currency="EUR")})
    lora, full = advice.method("lora"), advice.method("full")
    assert lora.trainable == lora_parameters(PeftLora.Config(), SMALL) == 4_884_480
    assert lora.share == pytest.approx(0.0363, abs=1e-4)
    assert (lora.variant_size, full.variant_size) == (4 * lora.trainable, 2 * SMALL.parameters)
    assert lora.storage == 2 * SMALL.parameters + 20 * lora.variant_size
    assert full.storage == 20 * full.variant_size
    seconds = lora.best.estimate.seconds
    assert lora.best.cost.low == pytest.approx(2 * seconds.low / 3600)
    assert lora.best.estimate.memory.high < full.best.estimate.memory.high


def test_workers_that_were_left_out_are_named_where_it_says_what_is_not_known():
    assert not any("all the same" in sentence for sentence in asked().unknown)
    left_out = [f"gpu-{number}" for number in range(5)]
    sentence = next(sentence for sentence in asked(left_out=left_out).unknown if "all the same" in sentence)
    assert sentence.startswith("Whether gpu-0, gpu-1, gpu-2 and 2 more will train it all the same:")


def test_all_nine_rows_have_a_cell_for_each_method():
    advice = asked()
    names = ["memory", "parameters", "speed", "storage", "ceiling", "variants", "forgetting", "complexity", "gpus"]
    assert [row.name for row in advice.rows] == names
    assert all(row.cells.keys() == {"lora", "qlora", "dora", "full"} and all(row.cells.values()) for row in advice.rows)
    assert advice.rows[-1].cells["lora"] == "8 GB and more"


def test_a_worker_without_the_package_for_four_bits_does_no_qlora_and_says_why():
    qlora = asked().method("qlora")
    assert qlora.verdict == "no"
    assert "bitsandbytes" in qlora.best.why


def test_on_a_card_that_is_too_small_for_lora_the_base_is_kept_in_four_bits():
    advice = asked(SEVEN, hosts=[CARD])
    assert [advice.method(name).verdict for name in ("lora", "qlora", "full")] == ["no", "fits", "no"]
    assert advice.recommendation.method == "qlora"
    assert advice.recommendation.settings["quantization"] == "4bit"
    assert "LoRA does not fit" in said(advice)
    assert "Full fine-tuning does not fit" in said(advice)


def test_each_worker_is_judged_by_itself_and_the_best_one_is_shown():
    advice = asked(SEVEN, hosts=[PC, CARD])
    lora = advice.method("qlora")
    assert [fit.host for fit in lora.fits] == ["pc-1", "card-1"]
    assert lora.best.host == "card-1"


def test_where_nothing_fits_no_method_is_proposed_and_a_card_is_named_that_would_do():
    advice = asked(SEVEN, hosts=[PC.model_copy(update={"memory": 4 << 30})])
    assert (advice.recommendation.method, advice.recommendation.sentence) == ("", "None of them fits on a worker here.")
    assert "would fit into a GPU of 8 GB" in said(advice)
    assert advice.recommendation.settings == {}


def test_without_a_worker_something_is_proposed_all_the_same_and_what_is_not_known_is_said():
    advice = asked(hosts=[])
    assert advice.recommendation.method == "lora"
    assert "No worker is running" in said(advice)
    assert any("memory, time and cost are not known" in sentence for sentence in advice.unknown)
    assert advice.rows[0].cells["lora"] == "not known"
    assert advice.rows[8].cells["lora"] == "8 GB and more"  # a card that does not exist needs no worker


def test_rows_that_were_never_read_as_tokens_leave_capacity_out_and_say_so():
    advice = asked(data=rows(tokens=False))
    assert all(method.capacity is None for method in advice.methods)
    assert any("not yet read with SmolLM2's tokenizer" in sentence for sentence in advice.unknown)
    assert advice.recommendation.method == "lora"


def test_new_knowledge_that_no_adapter_holds_asks_for_full_fine_tuning():
    advice = asked(data=rows(400_000, supervised=200_000_000), goal="knowledge")
    assert advice.recommendation.method == "full"
    assert "hold more than an adapter of rank 128" in said(advice)
    assert "invent more" in said(advice)


def test_new_knowledge_that_a_wider_adapter_holds_asks_for_that_rank():
    advice = asked(SEVEN, data=rows(100_000, supervised=100_000_000), goal="knowledge", hosts=[HUGE])
    assert advice.recommendation.method == "lora"
    room = advice.method("lora").capacity
    assert room.smallest is not None
    assert advice.recommendation.settings["rank"] >= room.smallest


HUGE = CARD.model_copy(update={"name": "huge-1", "gpus": [Gpu(name="Huge", memory=80 << 30)]})


def test_the_last_per_cent_is_full_fine_tuning_held_against_an_adapter():
    advice = asked(goal="quality")
    assert advice.recommendation.method == "full"
    assert "Compare it with LoRA" in said(advice)
    assert advice.recommendation.settings["epochs"] == 2


def test_the_last_per_cent_without_room_for_all_weights_is_an_adapter():
    advice = asked(SEVEN, goal="quality", hosts=[HUGE.model_copy(update={"gpus": [Gpu(name="Middle", memory=40 << 30)]})])
    assert advice.recommendation.method == "dora"
    assert "does not fit" in said(advice)


def test_a_way_to_train_that_is_not_installed_or_not_estimated_is_not_said_to_be_too_large():
    without = said(asked(goal="quality", plugins={"peft_lora": PeftLora()}))
    assert "Nothing that is installed here trains all weights" in without
    assert "does not fit" not in without

    class Broken(FullFinetune):
        def estimate(self, *case):
            raise RuntimeError("no idea")

    alone = asked(plugins={"full_finetune": Broken()})
    assert alone.recommendation.sentence == "Nobody can say whether one of them fits on a worker here."
    bare = asked(hosts=[PC.model_copy(update={"packages": {"torch": "1"}})])
    assert bare.recommendation.sentence == "No worker here can train with one of them."
    assert "This worker does not have transformers" in said(bare)


def test_adapter_and_full_are_held_against_each_other_on_one_worker():
    bare = CARD.model_copy(update={"name": "bare-1", "packages": {"torch": "1", "transformers": "1", "safetensors": "1"}})
    advice = asked(hosts=[PC, bare])  # full is fastest where no adapter can be trained
    assert advice.method("full").best.host == "bare-1"
    assert ", on pc-1. Its result" in said(advice)
    assert "LoRA’s time" in advice.rows[7].cells["dora"]


def test_what_is_said_of_quality_and_forgetting_has_the_cases_own_figures():
    advice = asked(surveyed=surveyed(probe_rows=20, probe_loss=1.5))
    assert "Like full fine-tuning on a set of this size" in advice.method("lora").quality
    assert "At rank 16 it holds about 9.8 million bits, the rows about 300" in advice.method("lora").quality
    forgets = advice.method("lora").forgetting
    assert "375 steps at 0.0002." in forgets
    assert "General rows cost this base 1.50 nats a token before." in forgets
    assert advice.method("full").forgetting_sources == ["studio"]
    assert "was not counted" in asked(data=rows(tokens=False)).method("lora").quality
    few = asked(data=rows(5)).method("lora")
    assert "The rows are read 20 times" in few.forgetting
    assert few.forgetting_sources == ["studio", "forgetting_laws"]


def test_many_clients_share_one_base():
    advice = asked(goal="clients", clients=50)
    assert advice.recommendation.method == "lora"
    assert "50 clients take 1.2 GB, against 13 GB as whole models." in said(advice)
    assert "many_adapters" in advice.sources


def test_the_smallest_machine_takes_what_needs_the_least():
    advice = asked(SEVEN, goal="smallest", hosts=[HUGE])
    least = min((method for method in advice.methods), key=lambda method: method.best.estimate.memory.high)
    assert advice.recommendation.method == least.name == "qlora"
    assert "A GPU of 8 GB would do." in said(advice)
    assert asked(SEVEN, goal="smallest", hosts=[]).recommendation.method == "qlora"


def test_pairs_of_answers_are_not_left_out_and_a_shape_that_nobody_reads_is_refused_in_words():
    assert asked(data=rows(shape="preference")).recommendation.method == "lora"
    nobody = asked(plugins={})
    assert (nobody.methods, nobody.recommendation.sentence) == ([], "No way to train here learns from such rows.")


def test_what_was_measured_takes_the_place_of_the_assumption():
    assumed, measured = asked().method("lora").capacity, asked(surveyed=surveyed()).method("lora").capacity
    assert (assumed.bits_a_token, assumed.measured) == (1.0, False)
    assert (measured.bits_a_token, measured.measured) == (pytest.approx(2.0), True)
    assert measured.needed == pytest.approx(2 * assumed.needed)
    assert "2.0 bits a token, as measured" in said(asked(surveyed=surveyed()))


def test_what_the_base_knows_already_and_what_is_far_from_it_are_said():
    assert "little to learn" in said(asked(surveyed=surveyed(loss=0.2)))
    assert "far from what it knows" in said(asked(surveyed=surveyed(loss=3.0, probe_rows=20, probe_loss=1.5)))
    assert "far from what it knows" not in said(asked(surveyed=surveyed(loss=1.6, probe_rows=20, probe_loss=1.5)))


def test_a_usual_rate_above_what_a_range_test_found_is_said():
    found = RateRange(low=1e-5, high=1e-4, points=[(1e-3, 1.0)])
    lower = asked(surveyed=surveyed(rates={"lora": found}))
    assert "0.0001 is taken" in said(lower)
    assert "at rates up to 0.0001." in lower.method("lora").forgetting
    assert lower.recommendation.settings["learning_rate"] == lower.method("lora").best.settings["learning_rate"] == 1e-4
    assert "learning_rate" not in asked(surveyed=surveyed(rates={"lora": found.model_copy(update={"cut": True})})).recommendation.settings
    inside = RateRange(low=1e-5, high=1e-2, points=[(1e-3, 1.0)])
    assert "short test" not in said(asked(surveyed=surveyed(rates={"lora": inside})))
    assert any("No range test was made for full fine-tuning" in line for line in asked(surveyed=surveyed(rates={"lora": inside})).unknown)


def test_copies_hold_nothing_new():
    config = PeftLora.Config()
    whole, half = capacity(config, SMALL, rows()), capacity(config, SMALL, rows(), copies=0.5)
    assert (whole.tokens, half.tokens) == (150_000, 75_000)


def test_capacity_is_two_bits_a_parameter_and_names_the_smallest_rank_that_is_enough():
    config = PeftLora.Config(rank=8)
    per_rank = lora_parameters(PeftLora.Config(rank=1), SMALL)
    found = capacity(config, SMALL, rows(supervised=2 * 40 * per_rank))
    assert (found.holds, found.enough, found.smallest) == (2 * 8 * per_rank, False, 64)
    assert found.largest == 128  # the narrowest layer is 192 wide
    assert capacity(config, SMALL, rows(supervised=2 * 8 * per_rank)).enough


def test_a_plugin_that_cannot_say_what_it_takes_is_a_sentence_and_no_harm():
    class Broken(PeftLora):
        def estimate(self, *case):
            raise RuntimeError("no idea")

    advice = asked(plugins=PLUGINS | {"peft_lora": Broken()})
    assert advice.method("lora").verdict == "unknown"
    assert "no idea" in advice.method("lora").best.why
    assert advice.recommendation.method == "full"


def test_what_earlier_runs_have_taught_corrects_the_estimate():
    def tenfold(plugin, host, estimate):
        memory = estimate.memory.model_copy(update={"low": 10 * estimate.memory.low, "high": 10 * estimate.memory.high})
        return estimate.model_copy(update={"memory": memory})

    assert asked(corrected=tenfold).method("lora").verdict == "no"


def test_every_source_that_is_named_is_one_of_the_literature():
    keys = {finding.key for finding in FINDINGS}
    assert len(keys) == len(FINDINGS)
    for goal in GOALS:
        for data in (rows(), rows(tokens=False), rows(400_000, supervised=200_000_000)):
            advice = asked(data=data, goal=goal, surveyed=surveyed(loss=3.0, probe_rows=9, probe_loss=1.0))
            assert set(advice.sources) <= keys
            assert advice.sources


def test_the_range_test_rises_by_equal_factors_between_its_bounds():
    tried = rates("lora")
    assert (tried[0], tried[-1], len(tried)) == (pytest.approx(1e-5), pytest.approx(3e-2), 24)
    assert tried[1] / tried[0] == pytest.approx(tried[23] / tried[22])


def test_the_range_begins_where_the_loss_falls_and_ends_where_it_was_lowest():
    tried = rates("full")
    losses = [1.0] * 8 + [1 - 0.05 * step for step in range(9)] + [0.7 + 0.2 * step for step in range(7)]
    found = found_range(tried, losses)
    assert tried[8] <= found.low <= tried[11]
    assert tried[15] < found.high < tried[18]
    assert found.holds(tried[7])
    assert not found.holds(tried[20])
    assert found_range(tried, losses, cut=True).holds(tried[20])


def test_a_loss_that_never_falls_or_breaks_at_once_gives_no_range():
    assert found_range(rates("lora"), [1.0] * 24) is None
    assert found_range(rates("lora"), [1.0, math.nan, math.inf]) is None
    assert is_over([1.0, 0.9, 0.9, 1.3])
    assert is_over([math.nan])
    assert not is_over([1.0, 1.2, 1.1])


def test_a_survey_is_judged_by_its_bounds():
    for odd in ({"loss": math.nan}, {"loss": -1.0}, {"surprising": 1.1}, {"rows": 0}, {"more": 1}, {"rates": {"other": None}}):
        with pytest.raises(ValueError, match="validation error"):
            surveyed(**odd)

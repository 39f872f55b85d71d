"""What a run will take, told before it starts: steps, parameters, memory, time, and what to change where it does not fit."""

import pytest

from studio.training import DatasetFacts, HostFacts, Issue, ModelFacts, TokenFacts
from studio.training.config import FullConfig, LoraConfig
from studio.training.facts import Gpu, Linear
from studio.training.lora import PeftConfig
from studio.training.memory import (
    changes_in_words,
    fitting_changes,
    full_estimate,
    largest_batch,
    lora_estimate,
    planned_steps,
    row_lengths,
    wants_checkpointing,
)
from training_plugins.peft_lora import PeftLora

Config = PeftLora.Config
GB = 10**9


def llama(
    *, hidden: int, intermediate: int, layers: int, heads: int, kv_heads: int, vocabulary: int, tied: bool, context: int = 2048
) -> ModelFacts:
    size = hidden // heads
    shapes = {
        "q_proj": (hidden, hidden),
        "k_proj": (hidden, kv_heads * size),
        "v_proj": (hidden, kv_heads * size),
        "o_proj": (hidden, hidden),
    }
    shapes |= {"gate_proj": (hidden, intermediate), "up_proj": (hidden, intermediate), "down_proj": (intermediate, hidden)}
    linears = [Linear(name=name, inputs=a, outputs=b, count=layers) for name, (a, b) in shapes.items()]
    parameters = sum(linear.inputs * linear.outputs * layers for linear in linears) + vocabulary * hidden * (1 if tied else 2)
    return ModelFacts(
        name="base",
        architecture="LlamaForCausalLM",
        family="llama",
        parameters=parameters,
        hidden_size=hidden,
        layers=layers,
        intermediate_size=intermediate,
        vocabulary=vocabulary,
        heads=heads,
        kv_heads=kv_heads,
        head_size=size,
        context_length=context,
        tied=tied,
        dtype="BF16",
        size=parameters * 2,
        linears=[*linears, Linear(name="lm_head", inputs=hidden, outputs=vocabulary, count=1)],
        chat_template=True,
    )


SMALL = llama(hidden=576, intermediate=1536, layers=30, heads=9, kv_heads=3, vocabulary=49152, tied=True)
SEVEN_BILLION = llama(hidden=4096, intermediate=11008, layers=32, heads=32, kv_heads=32, vocabulary=32000, tied=False, context=4096)
TOKENS = TokenFacts(total=40_000, supervised=30_500, p50=190, p95=420, p99=500, longest=640)
ROWS = DatasetFacts(name="rows", shape="chat", rows=200, train=190, validation=10, tokens=TOKENS)
LONG = DatasetFacts(
    name="long",
    shape="chat",
    rows=500,
    train=480,
    validation=20,
    tokens=TokenFacts(total=10**6, supervised=10**6, p50=2048, p95=2048, p99=2048, longest=2048),
)
PC = HostFacts(name="pc", cpus=2, memory=24 * GB, bf16=True, gflops=1000)


def issues(config: Config, *, base: ModelFacts = SMALL, data: DatasetFacts = ROWS, host: HostFacts = PC) -> list[Issue]:
    return PeftLora().check(config, base, data, host)


def the_issue(field: str, config: Config, **case: object) -> Issue:
    (found,) = [issue for issue in issues(config, **case) if issue.field == field]  # type: ignore[arg-type]
    return found


def test_steps_follow_rows_batches_and_epochs_or_the_step_limit():
    assert planned_steps(Config(batch_size=8, epochs=1), rows=200) == 25
    assert planned_steps(Config(batch_size=8, gradient_accumulation=4, epochs=3), rows=200) == 21
    assert planned_steps(Config(batch_size=8, epochs=0.5), rows=200) == 13
    assert planned_steps(Config(max_steps=7), rows=200) == 7


def test_the_trained_parameters_of_a_known_model_are_exact():
    assert lora_estimate(Config(), SMALL, ROWS, PC).trainable_parameters == 4_884_480
    assert lora_estimate(Config(), SEVEN_BILLION, ROWS, PC).trainable_parameters == 39_976_960


def test_dora_trains_one_more_number_per_output():
    plain, dora = (lora_estimate(Config(variant=variant, targets=["q_proj"]), SMALL, ROWS, PC) for variant in ("lora", "dora"))
    assert dora.trainable_parameters - plain.trainable_parameters == 576 * 30


def test_the_parts_of_memory_add_up_to_within_its_range():
    memory = lora_estimate(Config(), SMALL, ROWS, PC).memory
    total = sum(getattr(memory, part) for part in ("weights", "adapter", "gradients", "optimizer", "activations", "logits", "overhead"))
    assert memory.low < total < memory.high


def test_a_seven_billion_model_needs_what_the_trade_reports():
    one_row = Config(batch_size=1, max_length=2048, gradient_checkpointing="on")
    gpu = HostFacts(name="gpu", cpus=8, memory=64 * GB, gpus=[Gpu(name="A100", memory=40 * GB)], bf16=True, gflops=312e3)
    memory = lora_estimate(one_row, SEVEN_BILLION, LONG, gpu).memory
    assert memory.low < 16.5 * GB < memory.high  # 16.0 to 16.5 GB, by the published tables that the formula was checked against


def test_longer_rows_larger_batches_and_higher_precision_take_more():
    def activations(**changed: object) -> int:
        return lora_estimate(Config(**changed), SMALL, LONG, PC).memory.activations

    assert activations(max_length=256) < activations(max_length=512) < activations(max_length=512, batch_size=16)
    assert activations(gradient_checkpointing="on") < activations()
    assert (
        lora_estimate(Config(precision="fp32"), SMALL, ROWS, PC).memory.weights
        == 2 * lora_estimate(Config(), SMALL, ROWS, PC).memory.weights
    )


def test_rows_that_were_never_measured_widen_the_range_and_say_so():
    unread = ROWS.model_copy(update={"tokens": None})
    wide, narrow = (lora_estimate(Config(), SMALL, data, PC) for data in (unread, ROWS))
    assert wide.memory.high / wide.memory.low > narrow.memory.high / narrow.memory.low
    assert any("lengths are guessed" in reason for reason in wide.reasons)


def test_the_largest_batch_never_exceeds_that_of_the_longest_rows():
    histogram = TOKENS.model_copy(update={"histogram": [(100, 20), (200, 100), (400, 70), (640, 10)]})
    lengths = row_lengths(ROWS.model_copy(update={"tokens": histogram}), max_length=512)
    assert lengths.longest == 512 and 150 < lengths.mean <= 200
    assert 8 * lengths.mean < largest_batch(lengths, batch_size=8, batches=25) <= 8 * 512
    assert largest_batch(lengths, batch_size=1, batches=10**6) == 512


def test_more_work_takes_longer_and_a_faster_host_takes_less():
    def seconds(config: Config, host: HostFacts = PC) -> float:
        return lora_estimate(config, SMALL, ROWS, host).seconds.high

    assert seconds(Config(epochs=1)) < seconds(Config(epochs=3)) < seconds(Config(epochs=3, variant="dora"))
    assert seconds(Config(), PC.model_copy(update={"gflops": 4000})) < seconds(Config())


def test_checkpointing_is_turned_on_by_itself_only_where_the_run_would_not_fit():
    config = Config(max_length=2048, batch_size=8)
    assert not wants_checkpointing(config, SMALL, LONG, PC.model_copy(update={"memory": 64 * GB}))
    tight = PC.model_copy(update={"memory": 12 * GB})
    assert wants_checkpointing(config, SMALL, LONG, tight)
    assert any("turned on" in reason for reason in lora_estimate(config, SMALL, LONG, tight).reasons)


def test_a_sensible_run_has_nothing_against_it():
    assert issues(Config(epochs=3)) == []


def test_every_preset_is_valid():
    for preset in PeftLora.presets.values():
        assert not [issue for issue in issues(Config(**preset)) if issue.level == "error"]


def test_a_run_that_does_not_fit_is_told_what_would():
    issue = the_issue("batch_size", Config(max_length=2048, batch_size=64), base=SEVEN_BILLION, data=LONG)
    assert issue.level == "error"
    assert issue.message.startswith("Needs about ") and "the largest worker has 24 GB." in issue.message
    assert "accumulation" in issue.message and issue.message.endswith("learns the same.")
    fitting = fitting_changes(lora_estimate, Config(max_length=2048, batch_size=64), SEVEN_BILLION, LONG, PC)
    assert fitting is not None and fitting.batch_size * fitting.gradient_accumulation >= 64
    assert lora_estimate(fitting, SEVEN_BILLION, LONG, PC).memory.high <= 24 * GB


def test_where_checkpointing_alone_would_make_it_fit_that_is_proposed():
    config = Config(max_length=2048, gradient_checkpointing="off")
    issue = the_issue("gradient_checkpointing", config, data=LONG, host=PC.model_copy(update={"memory": 12 * GB}))
    assert "With gradient checkpointing on it needs about" in issue.message


def test_a_model_that_never_fits_is_refused():
    issue = the_issue("max_length", Config(), base=SEVEN_BILLION, host=PC.model_copy(update={"memory": 8 * GB}))
    assert issue.level == "error" and "Choose a smaller base model" in issue.message


def test_a_misspelt_target_is_answered_with_the_names_there_are():
    issue = the_issue("targets", Config(targets=["q_porj", "v_proj"]))
    assert issue.level == "error"
    assert issue.message == "q_porj not found. Available: down_proj, gate_proj, k_proj, lm_head, o_proj, q_proj, up_proj, v_proj."


def test_a_max_length_above_the_models_is_refused():
    issue = the_issue("max_length", Config(max_length=8192))
    assert (issue.level, issue.message) == ("error", "8\N{NO-BREAK SPACE}192 is more than this model's 2\N{NO-BREAK SPACE}048.")


def test_too_few_rows_are_refused_and_pairs_of_answers_are_not():
    few = ROWS.model_copy(update={"train": 9})
    pairs = ROWS.model_copy(update={"shape": "preference"})
    assert [issue.message for issue in issues(Config(), data=few) if issue.level == "error"] == [
        "There are only 9 training rows. At least 10 are needed, and 100 to see an effect."
    ]
    assert [issue.field for issue in issues(Config(), data=pairs)] == ["preference", "learning_rate"]


@pytest.mark.parametrize(
    ("changed", "field"),
    [
        ({"precision": "bf16"}, "precision"),
        ({"learning_rate": 0.01}, "learning_rate"),
        ({"rank": 512}, "rank"),
        ({"max_length": 256}, "max_length"),
        ({"warmup": 0.9}, "warmup"),
        ({"max_steps": 3}, "epochs"),
        ({"batch_size": 256, "max_length": 64}, "batch_size"),
    ],
)
def test_what_is_unwise_is_a_warning_beside_its_field(changed, field):
    slow = PC.model_copy(update={"bf16": False, "memory": 256 * GB})
    assert any(issue.level == "warning" and issue.field == field for issue in issues(Config(**changed), host=slow))


GPU = HostFacts(name="gpu", cpus=8, memory=128 * GB, gpus=[Gpu(name="A100", memory=80 * GB)], bf16=True, gflops=312e3)
PAIRS = ROWS.model_copy(update={"shape": "preference", "tokens": TOKENS.model_copy(update={"total": 80_000})})


def full_parts(**settings: object) -> dict[str, int]:
    return full_estimate(FullConfig(**settings), SEVEN_BILLION, LONG, GPU).memory.model_dump()


def test_bytes_per_parameter_of_full_fine_tuning_are_those_of_its_recipe():
    def per_parameter(**settings: object) -> list[float]:
        parts = full_parts(gradient_accumulation=2, **settings)
        return [round(parts[part] / SEVEN_BILLION.parameters, 1) for part in ("weights", "gradients", "optimizer")]

    assert per_parameter(precision="fp32") == [4, 4, 8]
    assert per_parameter() == [5.9, 4, 8]  # and a copy of the linear layers in bf16
    assert per_parameter(weights="bf16") == [2, 2, 4]
    assert per_parameter(weights="bf16", optimizer="adamw_8bit") == [2, 2, 2]
    assert per_parameter(weights="bf16", optimizer="paged_adamw_8bit") == [2, 2, 0]


def test_an_optimizer_in_8_bits_saves_nothing_where_there_is_no_gpu():
    plain, small = (full_estimate(FullConfig(optimizer=name), SMALL, ROWS, PC).memory.optimizer for name in ("adamw", "adamw_8bit"))
    assert plain == small == 8 * SMALL.parameters


def test_what_is_frozen_is_not_trained():
    def trained(**settings: object) -> int:
        return full_estimate(FullConfig(**settings), SMALL, ROWS, PC).trainable_parameters

    table = 49152 * 576
    assert trained() == SMALL.parameters
    assert trained(freeze_embeddings=True) == SMALL.parameters - table
    assert trained(freeze_embeddings=True, freeze_layers=15) == (SMALL.parameters - table) // 2
    assert trained(freeze_embeddings=True, freeze_layers=99) == 0


def test_several_gpus_share_weights_gradients_and_optimizer():
    one, four = (full_parts(gradient_accumulation=2, gradient_checkpointing="on", processes=number) for number in (1, 4))
    assert four["optimizer"] == one["optimizer"] / 4 and four["gradients"] == one["gradients"] / 4
    assert four["weights"] < one["weights"] / 3 and four["activations"] < one["activations"]
    assert four["overhead"] == one["overhead"]


def test_several_processes_on_one_processor_share_its_memory():
    one, two = (full_estimate(FullConfig(processes=number, gradient_accumulation=2), SMALL, LONG, PC).memory for number in (1, 2))
    assert two.overhead == 2 * one.overhead and two.optimizer == one.optimizer


def test_a_base_in_8_and_4_bits_takes_what_its_numbers_take():
    weights = {
        bits: lora_estimate(LoraConfig(quantization=bits), SEVEN_BILLION, LONG, GPU).memory.weights for bits in ("none", "8bit", "4bit")
    }
    assert weights["none"] == 2 * SEVEN_BILLION.parameters
    assert 1.03 < weights["8bit"] / SEVEN_BILLION.parameters < 1.08  # the tables of words stay in 16 bits
    assert 0.55 < weights["4bit"] / SEVEN_BILLION.parameters < 0.6


def test_pairs_have_two_answers_and_kto_reads_a_third():
    def tokens(kind: str, data: DatasetFacts = PAIRS) -> float:
        return lora_estimate(LoraConfig(preference=kind, gradient_checkpointing="off"), SMALL, data, PC).memory.activations

    alone = lora_estimate(LoraConfig(gradient_checkpointing="off"), SMALL, ROWS, PC).memory.activations
    assert 1.7 < tokens("dpo") / alone <= 2
    assert 1.3 < tokens("kto") / tokens("dpo") <= 1.5


def test_losses_that_look_at_the_base_first_take_longer():
    seconds = {kind: lora_estimate(LoraConfig(preference=kind), SMALL, PAIRS, PC).seconds.high for kind in ("dpo", "orpo", "simpo")}
    assert seconds["orpo"] == seconds["simpo"] < seconds["dpo"]


def test_what_fits_is_left_alone():
    assert fitting_changes(lora_estimate, LoraConfig(), SMALL, ROWS, PC) == LoraConfig()


def test_changes_that_lose_nothing_come_first():
    host = PC.model_copy(update={"memory": 4 * GB})
    config = LoraConfig(gradient_checkpointing="off", max_length=2048)
    tried = fitting_changes(lora_estimate, config, SMALL, LONG, host)
    assert changes_in_words(config, tried) == "gradient checkpointing on"
    tighter = fitting_changes(lora_estimate, config, SMALL, LONG, PC.model_copy(update={"memory": 2 * GB}))
    assert (tighter.batch_size * tighter.gradient_accumulation, tighter.max_length) == (8, 2048) and tighter.batch_size < 8


def test_fewer_bits_come_after_every_batch_and_with_the_largest_that_fits():
    config = LoraConfig(gradient_checkpointing="on", max_length=2048)
    needed = lora_estimate(config.model_copy(update={"batch_size": 1, "gradient_accumulation": 8}), SEVEN_BILLION, LONG, GPU).memory.high

    def tried(share: float) -> LoraConfig:
        card = GPU.model_copy(update={"gpus": [Gpu(name="card", memory=round(share * needed))]})
        return fitting_changes(lora_estimate, config, SEVEN_BILLION, LONG, card)

    assert (tried(1).batch_size, tried(1).quantization) == (1, "none")
    assert tried(0.99).quantization == "8bit" and tried(0.99).batch_size > 1
    assert tried(0.55).quantization == "4bit"
    assert tried(0.2) is None


@pytest.mark.parametrize(("config", "bits"), [(PeftConfig(initialization="pissa"), set()), (PeftConfig(variant="dora"), {"4bit"})])
def test_fewer_bits_are_proposed_only_where_the_other_settings_allow_them(config, bits):
    found = set()
    for memory in range(2, 40):
        card = GPU.model_copy(update={"gpus": [Gpu(name="card", memory=memory * GB)]})
        fitting = fitting_changes(lora_estimate, config, SEVEN_BILLION, LONG, card)
        found |= {fitting.quantization} if fitting else set()
    assert found == {"none"} | bits


def test_without_a_gpu_or_a_setting_for_it_rows_are_cut_where_nothing_else_is_left():
    config = FullConfig(gradient_checkpointing="on", batch_size=1, max_length=2048, weights="bf16")
    needed = full_estimate(config, SMALL, LONG, PC).memory.high
    tried = fitting_changes(full_estimate, config, SMALL, LONG, PC.model_copy(update={"memory": needed - 1}))
    assert changes_in_words(config, tried) == "max length 1024"


def test_settings_that_ran_out_of_memory_are_answered_with_clearly_less_whatever_was_thought():
    config = LoraConfig(max_length=2048)
    thought = lora_estimate(config, SMALL, LONG, PC).memory.high
    assert thought < 24 * GB
    tried = fitting_changes(lora_estimate, config, SMALL, LONG, PC, ran_out=True)
    assert changes_in_words(config, tried) == "gradient checkpointing on"
    again = fitting_changes(lora_estimate, tried, SMALL, LONG, PC, ran_out=True)
    assert again.batch_size < 8 and again.batch_size * again.gradient_accumulation == 8


def test_where_nothing_fits_nothing_is_proposed():
    assert fitting_changes(full_estimate, FullConfig(), SEVEN_BILLION, LONG, PC) is None


def test_what_was_measured_of_small_operations_counts_in_the_time():
    def seconds(precision: str = "auto", checkpointing: str = "off", **measured: object) -> float:
        config = LoraConfig(precision=precision, gradient_checkpointing=checkpointing)
        return lora_estimate(config, SMALL, ROWS, PC.model_copy(update=measured)).seconds.high

    assert seconds(traffic=4e9) < seconds(traffic=1e9)
    assert seconds(traffic=2e9, gflops=2000) < seconds(traffic=2e9)
    assert seconds(traffic=2e9) < seconds(checkpointing="on", traffic=2e9)
    assert seconds(traffic=2e9) < seconds(precision="fp32", traffic=2e9)


def test_a_run_that_was_timed_lies_within_its_range():
    """SmolLM2-135M, 200 rows, one epoch, no prompts: 488 tokens a second on a nearly quiet machine (docs/benchmarks.md)."""
    quiet = PC.model_copy(update={"gflops": 916, "traffic": 1.95e9})
    data = ROWS.model_copy(update={"train": 200, "validation": 0})
    seconds = lora_estimate(LoraConfig(epochs=1), SMALL, data, quiet).seconds
    assert seconds.low < 40_000 / 488 + 12 < seconds.high


def test_the_disk_holds_the_result_and_three_states():
    """An adapter in fp32, and with AdamW's two moments three times; a model, and with them at 12 or 6 bytes a weight."""
    assert lora_estimate(LoraConfig(), SMALL, ROWS, PC).disk == 4_884_480 * 4 * (1 + 3 * 3)
    assert full_estimate(FullConfig(), SMALL, ROWS, PC).disk == SMALL.parameters * (4 + 3 * 12)
    assert full_estimate(FullConfig(weights="bf16"), SMALL, ROWS, PC).disk == SMALL.parameters * (2 + 3 * 6)

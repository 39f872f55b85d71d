"""What the form starts with follows the case: method, base model, rows, tokens and machine; each with its reason."""

import pytest

from studio.training import DatasetFacts, Estimate, FullConfig, HostFacts, Memory, Span, TokenFacts, TrainConfig, TrainingPlugin, setting
from studio.training.defaults import preset_changes, sparing_formats, suggest, values_of
from studio.training.form import check_config
from tests.training.test_memory import LONG, PC, ROWS, SEVEN_BILLION, SMALL
from training_plugins.peft_lora import PeftLora
from training_plugins.rehearsal import Rehearsal

GB = 10**9


class Full(TrainingPlugin):
    """All weights: 16 bytes for each in mixed precision, 6 in bf16, and a megabyte for each token of a batch."""

    name, title, method = "full", "Full", "full"
    Config = FullConfig

    def estimate(self, config, base, data, host):
        weights = base.parameters * (6 if config.weights == "bf16" else 16)
        activations = config.batch_size * config.max_length * 1_000_000
        parts = dict.fromkeys(("adapter", "gradients", "optimizer", "logits", "overhead"), 0)
        total = weights + activations
        memory = Memory(weights=weights, activations=activations, low=total, high=total, **parts)
        return Estimate(memory=memory, trainable_parameters=0, steps=1, seconds=Span(low=1, high=1), disk=1, available=host.memory)

    def train(self, config, job):
        raise NotImplementedError


def rows(count=1000, *, shape="chat", tokens=True, p99=431, longest=900, supervised=100_000, **_):
    measured = TokenFacts(total=2 * supervised, supervised=supervised, p50=100, p95=300, p99=p99, longest=longest) if tokens else None
    held_back = round(count * 0.05)
    return DatasetFacts(name="rows", shape=shape, rows=count, train=count - held_back, validation=held_back, tokens=measured)


def defaults(plugin=None, *, base=SMALL, data=None, host=PC):
    return suggest(plugin or PeftLora(), base=base, data=data or rows(), host=host)


def told(name, plugin=None, **case):
    return defaults(plugin, **case)[name].sentence


def test_max_length_is_room_for_99_rows_of_a_hundred_in_whole_pieces():
    assert told("max_length") == "448, since 99 of 100 rows have at most 431 tokens."
    assert told("max_length", data=rows(p99=430, longest=440)) == "448, since the longest row has 440 tokens."
    assert defaults(data=rows(p99=20, longest=30))["max_length"].value == 64
    assert defaults(data=rows(p99=449))["max_length"].value == 512


def test_max_length_is_never_more_than_the_model_reads():
    assert told("max_length", data=rows(p99=5000, longest=9000)) == "2048, since base reads no more; the longest row has 9000 tokens."
    short = SMALL.model_copy(update={"context_length": 256})
    assert told("max_length", base=short, data=rows(tokens=False)) == "256, since base reads no more."


def test_what_was_not_measured_keeps_the_plugins_own_default():
    found = defaults(data=rows(tokens=False))
    assert "max_length" not in found
    assert found["rank"].sentence == "16, which suits most tasks."


def test_all_weights_learn_at_a_tenth_of_an_adapters_rate_and_large_models_at_half():
    large = SEVEN_BILLION.model_copy(update={"parameters": 32 * GB})
    rates = [defaults(plugin, base=base, host=None)["learning_rate"].value for base in (SMALL, large) for plugin in (PeftLora(), Full())]
    assert rates == [2e-4, 2e-5, 1e-4, 1e-5]


def test_pairs_of_answers_are_learnt_slowly_and_once():
    pairs = rows(shape="preference")
    assert [defaults(plugin, data=pairs)["learning_rate"].value for plugin in (PeftLora(), Full())] == [1e-5, 1e-6]
    assert told("epochs", data=pairs) == "1, since pairs of answers are soon learnt by heart."


@pytest.mark.parametrize(("count", "epochs"), [(10, 10), (31, 3), (1000, 3), (12_000, 2), (100_000, 1), (1, 25)])
def test_few_rows_are_read_more_often_than_many(count, epochs):
    assert defaults(data=rows(count))["epochs"].value == epochs


def test_full_fine_tuning_reads_less_often_than_an_adapter():
    assert (defaults()["epochs"].value, defaults(Full())["epochs"].value) == (3, 2)


def test_the_rank_has_room_for_what_is_to_be_learnt():
    assert told("rank") == "16, which has room for the 95\u202f000 tokens to learn."
    more = rows(100_000, supervised=20_000_000)
    assert told("rank", data=more) == "32, since a smaller adapter has no room for 19 million tokens to learn."
    most = rows(100_000, supervised=2 * GB)
    assert told("rank", data=most) == "128, the largest that pays; 1.9 billion tokens are more than an adapter holds."
    assert defaults(data=more)["alpha"].value == 64  # twice the rank
    narrow = SMALL.model_copy(update={"linears": [linear.model_copy(update={"outputs": 12}) for linear in SMALL.linears]})
    assert defaults(base=narrow)["rank"].value == 8


@pytest.mark.parametrize(("count", "lora", "full"), [(20, 4, 4), (1000, 8, 8), (5000, 16, 32), (1_000_000, 16, 32)])
def test_a_step_has_more_rows_where_there_are_more(count, lora, full):
    found = [defaults(plugin, data=rows(count))["batch_size"].value for plugin in (PeftLora(), Full())]
    assert found == [lora, full]


def test_a_batch_that_does_not_fit_is_halved_and_added_up():
    tight = PC.model_copy(update={"memory": 16 * SMALL.parameters + 1000 * 1_000_000})
    found = defaults(Full(), host=tight)
    assert (found["batch_size"].value, found["gradient_accumulation"].value) == (2, 4)
    assert found["batch_size"].sentence == "2, since 8 rows at once would not fit into the worker's memory."
    assert found["gradient_accumulation"].sentence == "4, so that each step still learns from 8 rows."
    assert "gradient_accumulation" not in defaults(Full())
    assert "gradient_accumulation" not in defaults(Full(), host=None)


def test_where_batches_of_one_do_not_fit_weights_take_less_room_and_then_rows_are_cut():
    without_room = PC.model_copy(update={"memory": 6 * SMALL.parameters + 1_000_000_000})
    found = defaults(Full(), host=without_room)
    assert (found["weights"].value, found["max_length"].value, found["batch_size"].value) == ("bf16", 448, 2)
    long = rows(p99=1500, longest=4000)
    cut = defaults(Full(), data=long, host=without_room)
    assert cut["max_length"].sentence == "768, since longer rows would not fit into the worker's memory."
    nothing = defaults(Full(), host=PC.model_copy(update={"memory": 1}))
    assert (nothing["batch_size"].value, nothing["max_length"].value) == (1, 448)


def test_four_bits_are_offered_only_where_a_gpu_can_use_them():
    card = {"name": "card", "memory": 10 * GB}
    able = HostFacts(name="gpu", cpus=8, memory=64 * GB, gpus=[card], bf16=True, packages={"bitsandbytes": "0.49"})
    ways = [list(sparing_formats(PeftLora(), host)) for host in (able, able.model_copy(update={"packages": {}}), PC)]
    assert [{"quantization": "4bit"} in found for found in ways] == [True, False, False]


def test_warm_up_is_about_ten_steps():
    assert told("warmup") == "0.03, so that it rises over the first 11 of 357 steps."
    assert defaults(data=rows(60))["warmup"].value == 0.1
    assert defaults(data=rows(1_000_000))["warmup"].value == 0.03


@pytest.mark.parametrize("plugin", [PeftLora(), Full()])
@pytest.mark.parametrize("data", [ROWS, LONG, rows(1), rows(1, tokens=False), rows(10**7, supervised=10**12, shape="preference")])
@pytest.mark.parametrize("host", [PC, None])
def test_every_default_and_every_preset_can_be_used(plugin, data, host):
    found = defaults(plugin, data=data, host=host)
    for changes in ({}, *(preset_changes(plugin, name, found) for name in plugin.presets)):
        assert check_config(plugin.Config, values_of(found) | changes)[1] == {}


def test_a_way_to_train_without_a_model_keeps_its_own_defaults():
    assert defaults(Rehearsal()) == {}


def test_a_default_beyond_a_plugins_own_bounds_is_left_out():
    class Narrow(Full):
        class Config(TrainConfig):
            learning_rate: float = setting(1e-6, label="Learning rate", gt=0, le=1e-5)

    found = defaults(Narrow())
    assert "learning_rate" not in found and "rank" not in found and "epochs" in found


def test_an_estimate_that_fails_changes_no_default():
    class Wild(Full):
        def estimate(self, config, base, data, host):
            raise RuntimeError("odd")

    assert defaults(Wild())["batch_size"].value == 8


def test_a_preset_moves_with_the_defaults_of_the_case():
    usual = preset_changes(PeftLora(), "Thorough", defaults())
    assert (usual["epochs"], usual["rank"], usual["alpha"], usual["learning_rate"]) == (5.0, 32, 64.0, 1e-4)
    few = preset_changes(PeftLora(), "Thorough", defaults(data=rows(12)))
    assert few["epochs"] == 15.0  # nine are the default of so few rows
    pairs = preset_changes(PeftLora(), "Thorough", defaults(data=rows(shape="preference")))
    assert pairs["learning_rate"] == 5e-6
    assert preset_changes(PeftLora(), "Quick try", defaults()) == {"max_steps": 30}
    assert preset_changes(PeftLora(), "Balanced", defaults()) == {}

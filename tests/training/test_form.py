"""A form is drawn from a plugin's Config, and what is typed into it is judged in plain sentences."""

from typing import Literal

import pytest
from pydantic import Field, model_validator

from studio.training import LoraConfig, TrainConfig, setting
from studio.training.form import as_text, check_config, form_fields, parse_form


def field(name, config_class=LoraConfig):
    return {field.name: field for field in form_fields(config_class)}[name]


def test_a_field_knows_its_label_help_bounds_and_default():
    rank = field("rank")
    assert (rank.label, rank.kind, rank.default, rank.ge, rank.le, rank.advanced) == ("Rank", "integer", 16, 1, 512, False)
    assert rank.help.startswith("Size of the adapter")
    assert rank.hint.startswith("Width")
    assert field("max_length").unit == "tokens"
    assert field("scheduler").choices == ("linear", "cosine", "constant")
    assert field("targets").text == "all-linear"
    assert field("warmup").advanced


def test_a_field_knows_where_it_is_worth_searching():
    assert (field("learning_rate").log, field("learning_rate").search) == (True, None)
    assert (field("warmup").log, field("warmup").search) == (False, (0.0, 0.2))
    assert not field("batch_size").log


def test_fields_come_in_the_order_in_which_they_were_written():
    names = [field.name for field in form_fields(LoraConfig)]
    assert names[:2] == ["epochs", "max_steps"]
    assert names.index("rank") > names.index("gradient_checkpointing")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (2e-4, "0.0002"),
        (2.5e-5, "0.000025"),
        (1e-7, "0.0000001"),
        (3.0, "3"),
        (0.05, "0.05"),
        (True, "on"),
        (None, ""),
        (["a", "b"], "a, b"),
    ],
)
def test_a_default_is_written_as_a_person_would_type_it(value, text):
    assert as_text(value) == text


def test_every_default_survives_the_way_through_the_form():
    typed = {field.name: field.text for field in form_fields(LoraConfig)}
    assert parse_form(LoraConfig, typed) == (LoraConfig(), {})


def test_what_was_typed_becomes_a_config():
    config, errors = parse_form(
        LoraConfig, {"rank": " 32 ", "learning_rate": "5e-5", "targets": "q_proj, v_proj", "epochs": "1.", "alpha": ".5"}
    )
    assert errors == {}
    assert (config.rank, config.learning_rate, config.targets, config.epochs, config.alpha) == (32, 5e-5, ["q_proj", "v_proj"], 1.0, 0.5)


def test_names_that_are_no_setting_change_nothing():
    config, errors = parse_form(LoraConfig, {"workspace": "2", "status": "succeeded", "csrfmiddlewaretoken": "x"})
    assert (config, errors) == (LoraConfig(), {})


@pytest.mark.parametrize(
    "typed", ["0", "-1", "nan", "inf", "-inf", "1e999", "1_000", "٠.٠١", "0,01", "", "0.11", "0x1", "1 0", "²", "9" * 5000]
)
def test_a_learning_rate_that_cannot_be_is_refused(typed):
    assert parse_form(LoraConfig, {"learning_rate": typed}) == (None, {"learning_rate": "Must be above 0 and at most 0.1."})


@pytest.mark.parametrize("typed", ["0", "-1", "3.5", "8.0", "1e2", "100000", "1_6", "١٦", "16; DROP", "", "9" * 5000])
def test_a_rank_that_cannot_be_is_refused(typed):
    assert parse_form(LoraConfig, {"rank": typed}) == (None, {"rank": "Rank must be a whole number from 1 to 512."})


def test_every_wrong_field_gets_its_own_sentence():
    _, errors = parse_form(
        LoraConfig,
        {"alpha": "0", "dropout": "1", "seed": str(2**64), "scheduler": "steep", "batch_size": "0", "epochs": "1e9", "targets": " , "},
    )
    assert errors == {
        "alpha": "Must be above 0 and at most 4096.",
        "dropout": "Must be at least 0 and below 1.",
        "seed": "Seed must be a whole number from 0 to 4\u202f294\u202f967\u202f295.",
        "scheduler": "Schedule must be one of linear, cosine, constant.",
        "batch_size": "Batch size must be a whole number from 1 to 1024.",
        "epochs": "Must be above 0 and at most 1000.",
        "targets": "Name at least one layer, or all-linear.",
    }


def test_a_script_sends_json_and_is_judged_as_strictly():
    config, errors = check_config(LoraConfig, {"rank": 8, "epochs": 2, "targets": "q_proj v_proj"})
    assert errors == {}
    assert (config.rank, config.epochs, config.targets) == (8, 2.0, ["q_proj", "v_proj"])
    _, errors = check_config(LoraConfig, {"rank": "8", "alpha": True, "epochs": None, "targets": 7, "learning_rate": float("nan")})
    assert errors == {name: field(name).rule for name in ("rank", "alpha", "epochs", "targets", "learning_rate")}


def test_a_misspelt_setting_is_named_with_its_nearest_neighbour():
    _, errors = check_config(LoraConfig, {"learning_rte": 1e-4, "zzz": 1})
    assert errors["learning_rte"] == 'There is no setting "learning_rte". Did you mean learning_rate?'
    assert errors["zzz"] == 'There is no setting "zzz". Leave it out.'


class Stranger(TrainConfig):
    """Written by somebody who knows pydantic but not `setting`."""

    momentum: float = 0.9
    merge: bool = False
    teacher: str | None = None
    style: Literal["a", "b"] = Field("a", description="Which way.")
    beams: int = Field(4, gt=1)
    rounds: int = Field(4, ge=2)

    @model_validator(mode="after")
    def rule(self):
        if self.merge and self.teacher:
            raise ValueError("Choose merge or a teacher, not both.")
        return self


def test_plain_pydantic_fields_are_drawn_too():
    assert field("momentum", Stranger).label == "Momentum"
    assert field("style", Stranger).help == "Which way."
    assert field("beams", Stranger).rule == "Beams must be a whole number above 1."
    assert field("rounds", Stranger).rule == "Rounds must be a whole number of at least 2."
    assert field("momentum", Stranger).rule == "Must be a number."
    config, _ = parse_form(Stranger, {"merge": "on", "teacher": "", "beams": "2"})
    assert (config.merge, config.teacher, config.beams) == (True, None, 2)
    assert parse_form(Stranger, {"merge": "off"})[0].merge is False
    assert parse_form(Stranger, {"merge": "perhaps"})[1] == {"merge": "Merge must be on or off."}


def test_a_rule_about_several_settings_stands_above_the_form():
    assert parse_form(Stranger, {"merge": "on", "teacher": "big"}) == (None, {"": "Choose merge or a teacher, not both."})


def test_a_setting_that_no_form_can_draw_is_refused():
    class Odd(TrainConfig):
        table: dict[str, list[int]] = setting({}, label="Table")

    with pytest.raises(TypeError, match="table has the type"):
        form_fields(Odd)


class Patterned(TrainConfig):
    ranks: dict[str, int] = setting({"q_proj": 8}, label="Ranks")
    alphas: dict[str, float] = setting({}, label="Alphas")


@pytest.mark.parametrize("typed", ["q_proj: 4, v_proj: 16", "q_proj=4\nv_proj=16\n", " q_proj :4;v_proj: 16,"])
def test_names_with_numbers_are_typed_one_after_another(typed):
    config, errors = parse_form(Patterned, {"ranks": typed, "alphas": "v_proj: 2.5"})
    assert not errors and config.ranks == {"q_proj": 4, "v_proj": 16} and config.alphas == {"v_proj": 2.5}
    assert as_text(config.ranks) == "q_proj: 4, v_proj: 16" and as_text(config.alphas) == "v_proj: 2.5"
    assert parse_form(Patterned, {"ranks": ""})[0].ranks == {}


@pytest.mark.parametrize("typed", ["q_proj", "q_proj: many", "q_proj: 1.5", "q_proj: 1_0", ": : 3"])
def test_what_is_no_name_with_a_number_is_refused(typed):
    assert parse_form(Patterned, {"ranks": typed}) == (
        None,
        {"ranks": "Ranks must be names with a number each, such as q_proj: 8, v_proj: 16."},
    )

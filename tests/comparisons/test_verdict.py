"""The verdict of a comparison: its figures, found again by other code, its words for each case, and how sure they are."""

import math
import random
import re
import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from django.test import Client as Browser

from studio.comparisons import reckoning, verdict, verdict_table
from studio.comparisons.built import with_built
from studio.comparisons.figure_words import percent, plus_minus, times
from studio.comparisons.figures import ArmFigures, Figure, Verdict
from studio.comparisons.measured import folder_of
from studio.comparisons.models import Comparison
from studio.comparisons.reckoning import share_of
from studio.comparisons.taken import Costs, Spread, Took
from studio.comparisons.verdict_charts import plots
from studio.comparisons.wording import worded
from studio.orders.models import Event
from tests.comparisons.house import BASE, make_measured
from tests.comparisons.training import trained
from tests.fixtures import make_artifact, make_build, make_comparison, make_member

# ── Found again from what was recorded, by other code ──


def drawn_rows(chance: random.Random, rows: int) -> list[int]:
    return [chance.randrange(rows) for _ in range(rows)]


def luck_of_seeds(chance: random.Random, table: Sequence[Sequence[float]], tokens: Sequence[int]) -> float:
    """One draw of how far the mean of an arm's seeds may lie from the truth, because of the seeds."""
    seeds, rows, total = len(table), len(tokens), sum(tokens)
    means = [sum(each) / total for each in table]
    middle = statistics.fmean(means)
    of_rows = [statistics.fmean(each[row] for each in table) for row in range(rows)]
    left = 0.0
    for each, mean in zip(table, means, strict=True):
        for row in range(rows):
            left += (each[row] - of_rows[row] - (mean - middle) * tokens[row]) ** 2
    by_rows = left / (seeds - 1) * rows / (rows - 1) / total**2
    spread = math.sqrt(max(0.0, statistics.variance(means) - by_rows))
    normal = [chance.gauss(0, 1) for _ in range(seeds)]
    tails = math.sqrt((seeds - 1) / sum(chance.gauss(0, 1) ** 2 for _ in range(seeds - 1)))
    return spread * normal[0] / math.sqrt(seeds) * tails


def found_again(comparison: Comparison, draws: int = 3000) -> dict[str, Any]:
    """From rows.parquet and Event rows alone, with loops: value, low and high of the gain of each arm, the kept share, and forgetting."""
    folder = folder_of(comparison)
    assert folder is not None
    told: dict[tuple[str, int, int], list[tuple[float, int]]] = {}
    for row in pq.read_table(folder / "rows.parquet").to_pylist():
        told.setdefault((row["set"], row["arm"], row["seed"]), []).append((row["loss"], row["tokens"]))

    def table(of: str, arm: int) -> list[list[float]]:
        return [[loss for loss, _ in rows] for (name, number, _), rows in sorted(told.items()) if (name, number) == (of, arm)]

    def tokens(of: str) -> list[int]:
        return [count for _, count in told[of, -1, 0]]

    def mean(rows: Sequence[float], of: str, places: Sequence[int]) -> float:
        return sum(rows[place] for place in places) / sum(tokens(of)[place] for place in places)

    def middle(of: str, arm: int) -> list[float]:
        return [statistics.fmean(each) for each in zip(*table(of, arm), strict=True)]

    chance, found = random.Random(7), {}
    for of in ("held_out", "probe"):
        count, base = len(tokens(of)), table(of, -1)[0]
        every = range(count)
        middles, tables = {arm: middle(of, arm) for arm in (0, 1)}, {arm: table(of, arm) for arm in (0, 1)}
        drawn: dict[int, list[float]] = {0: [], 1: []}
        for _ in range(draws):
            places = drawn_rows(chance, count)
            for arm in (0, 1):
                after = mean(middles[arm], of, places) + luck_of_seeds(chance, tables[arm], tokens(of))
                drawn[arm].append(mean(base, of, places) - after)
        for arm in (0, 1):
            found[f"{of} {arm}"] = (mean(base, of, every) - mean(middles[arm], of, every), *ends(drawn[arm]))
        if of == "held_out":
            shares = [one / other for one, other in zip(drawn[0], drawn[1], strict=True)]
            found["kept"] = (found["held_out 0"][0] / found["held_out 1"][0], *ends(shares))
    took = {arm.number: taken_again(arm) for arm in comparison.arms.all()}
    for number, told in took.items():
        for name, values in told.items():
            found[f"{name} {number}"] = around(values)
    for name in ("seconds", "memory"):
        value = statistics.fmean(took[0][name]) / statistics.fmean(took[1][name])
        drawn_ratios = [luck_of(chance, took[0][name]) / luck_of(chance, took[1][name]) for _ in range(2 * draws)]
        found[f"ratio of {name}"] = (value, *ends(drawn_ratios))
    return found


STUDENTS = {2: 12.7062, 3: 4.3027}
"""The 97.5 % quantile of Student's t, by how many seeds there are."""


def taken_again(arm: Any) -> dict[str, list[float]]:
    """What each seed's training took, from its order and its Event and Usage rows alone."""
    found: dict[str, list[float]] = {}
    for arm_run in arm.runs.order_by("seed"):
        order = arm_run.run.order
        bodies = [event.body for event in Event.objects.filter(order=order, type="metric")]
        hours = [(usage.ended_at - usage.started_at).total_seconds() / 3600 * usage.gpus for usage in order.usage.all()]
        told = {
            "seconds": (order.ended_at - order.started_at).total_seconds(),
            "gpu_hours": sum(hours),
            "memory": max(body["memory"] for body in bodies),
            "energy": max(body["energy"] for body in bodies),
            "tokens_per_second": statistics.fmean(body["tokens_per_second"] for body in bodies),
        }
        for name, value in told.items():
            found.setdefault(name, []).append(value)
    return found


def around(values: Sequence[float]) -> tuple[float, float, float]:
    """The mean with Student's interval (Student 1908)."""
    mean, half = statistics.fmean(values), STUDENTS[len(values)] * statistics.stdev(values) / math.sqrt(len(values))
    return mean, mean - half, mean + half


def luck_of(chance: random.Random, values: Sequence[float]) -> float:
    """One draw of where the mean of so few values may come to lie: their spread times a number that follows Student's t."""
    freedom = len(values) - 1
    drawn = chance.gauss(0, 1) / math.sqrt(sum(chance.gauss(0, 1) ** 2 for _ in range(freedom)) / freedom)
    return statistics.fmean(values) + drawn * statistics.stdev(values) / math.sqrt(len(values))


def ends(draws: Sequence[float]) -> tuple[float, float]:
    cut = statistics.quantiles(draws, n=40)
    return cut[0], cut[-1]


@pytest.mark.django_db
def test_the_verdicts_numbers_are_found_again_from_what_was_recorded_by_other_code(acme):
    comparison = make_comparison(acme, seeds=(1, 2, 3))
    trained(comparison, apart=0.02)
    make_measured(comparison, **made(rows=24), tokens=[8 + row % 5 for row in range(24)])
    found, again = verdict.renew(comparison), found_again(comparison, draws=1500)
    lora, full = found.arm(0), found.arm(1)
    same(lora.gain, again["held_out 0"])
    same(full.gain, again["held_out 1"])
    same(lora.kept, again["kept"])
    same(turned(lora.forgetting), again["probe 0"])
    same(turned(full.forgetting), again["probe 1"])
    for arm in (lora, full):
        for name in ("seconds", "gpu_hours", "memory", "energy", "tokens_per_second"):
            same(as_figure(getattr(arm.took, name)), again[f"{name} {arm.number}"])
    assert lora.gain.value == pytest.approx(lora.before - lora.loss.value)
    assert lora.perplexity.value == pytest.approx(math.exp(lora.loss.value))
    assert f"{again['kept'][0] * 100:.1f} %" in found.sentence
    for what, name in (("time", "seconds"), ("memory", "memory")):
        value, low, high = again[f"ratio of {name}"]
        said = re.search(rf"{value * 100:.0f} % ± (\d+) of the {what}", found.sentence)
        assert said and int(said[1]) == pytest.approx((high - low) / 2 * 100, abs=0.75)


def as_figure(told: Spread) -> Figure:
    return Figure(value=told.mean, low=told.low, high=told.high)


def same(figure: Figure, again: tuple[float, float, float]) -> None:
    """The value exactly, and the ends of the interval as far as chance lets two samples agree."""
    value, low, high = again
    assert figure.value == pytest.approx(value)
    assert figure.low == pytest.approx(low, abs=0.2 * (high - low))
    assert figure.high == pytest.approx(high, abs=0.2 * (high - low))


def turned(figure: Figure) -> Figure:
    return Figure(value=-figure.value, low=-figure.high, high=-figure.low)


def made(
    *, lora: float = 16.4, full: float = 16.0, base: float = 24.0, rows: int = 40, luck: float = 0.05, seeds: int = 3
) -> dict[str, Any]:
    """Losses of 10 tokens a row: `luck` is how far a seed lies from another."""
    chance = random.Random(3)
    row = [chance.gauss(0, 1) for _ in range(rows)]

    def losses(mean: float) -> list[float]:
        own = chance.gauss(0, luck)
        return [mean + each + own + chance.gauss(0, 0.05) for each in row]

    held_out, probe = {BASE: losses(base)}, {BASE: losses(18.0)}
    for arm, after, forgotten in ((0, lora, 18.4), (1, full, 19.2)):
        for seed in range(1, seeds + 1):
            held_out[arm, seed], probe[arm, seed] = losses(after), losses(forgotten)
    return {"held_out": held_out, "probe": probe}


@pytest.mark.django_db
def test_a_verdict_is_stored_and_one_of_another_studio_is_not_shown(acme):
    comparison = make_comparison(acme, seeds=(1, 2, 3))
    make_measured(comparison)
    found = verdict.renew(comparison)
    comparison.refresh_from_db()
    assert Verdict.of(comparison) == found
    comparison.verdict["version"] = 0
    assert Verdict.of(comparison) is None
    comparison.verdict = {"version": 2, "sentence": 7}
    assert Verdict.of(comparison) is None


@pytest.mark.django_db
def test_the_page_says_that_a_verdict_was_found_by_an_earlier_studio(acme):
    comparison = make_comparison(acme)
    comparison.verdict = {"version": 1, "sentence": "LoRA keeps all."}
    comparison.save()
    browser = Browser()
    browser.force_login(acme.owner.user)
    page = browser.get(f"/comparisons/{comparison.pk}/").content.decode()
    assert "found by an earlier version of the studio" in page
    assert "LoRA keeps all." not in page
    assert "LoRA keeps all." not in browser.get("/comparisons/").content.decode()
    told = acme.api.get(f"comparisons/{comparison.pk}").json()
    assert (told["sentence"], told["verdict"]) == ("", None)
    assert [line["sentence"] for line in acme.api.get("comparisons").json()["items"]] == [""]


# ── What each seed has one figure of ──


def test_one_seed_has_no_interval_and_seeds_that_agree_have_none_to_tell():
    one = Spread.of([12.5])
    assert (one.mean, one.low, one.high, one.half) == (12.5, None, None, 0.0)
    alike = Spread.of([19_500_000] * 3)
    assert (alike.low, alike.high, alike.half) == (19_500_000, 19_500_000, 0.0)
    assert Spread.of([None, None]) is None
    assert Spread.of([3.0, None, 5.0]).each == [3.0, 5.0]


def test_nothing_that_was_taken_is_below_nothing():
    two = Spread.of([60.0, 100.0])  # of two seeds little is known
    assert (two.low, two.is_cut) == (0.0, True)
    assert two.high == pytest.approx(80 + 12.706 * 20, rel=0.3)
    table = verdict_table.headline(judged(lora(took=Took(seconds=two)), full(), reference=1), None)
    time = next(column for column in table if column.title == "Time")
    assert time.cells[0].note.startswith("up to ")


def test_the_table_tells_an_interval_one_seed_and_the_best_only_where_they_lie_apart():
    quick, slow, vague = Spread.of([95.0, 100.0, 105.0]), Spread.of([290.0, 300.0, 310.0]), Spread.of([80.0, 150.0, 300.0])

    def times(ours: Spread, theirs: Spread) -> dict[int, Any]:
        found = judged(lora(took=Took(seconds=ours)), full(took=Took(seconds=theirs)), reference=1, most_seeds=3)
        return next(column for column in verdict_table.headline(found, None) if column.title == "Time").cells

    apart = times(quick, slow)
    assert (apart[0].text, apart[0].is_best) == ("2 min", True)
    assert re.fullmatch(r"± 1[123] s", apart[0].note)  # 12.4 by Student's own quantile
    assert "95 % interval from" in apart[0].title
    assert not any(cell.is_best for cell in times(quick, vague).values())
    alone = times(Spread.of([100.0]), slow)
    assert (alone[0].note, alone[0].title) == ("one seed", "100 of one seed, so no interval")


def test_an_interval_that_reads_as_nought_is_not_told():
    costs = Costs({0: Spread.of([0.1001, 0.1002, 0.1003]), 1: Spread.of([1.0, 1.1, 1.2])}, "EUR")
    found = judged(lora(), full(), reference=1)
    cost = next(column for column in verdict_table.headline(found, costs) if column.title == "Cost")
    assert (cost.cells[0].text, cost.cells[0].note) == ("0.10 EUR", "")
    assert cost.cells[0].title.startswith("0.1002, 95 % interval from 0.0999")
    assert re.fullmatch(r"± 0\.[1-9]\d EUR", cost.cells[1].note)
    free = Costs({0: Spread.of([0.0001, 0.0002])}, "EUR")
    cost = next(column for column in verdict_table.headline(found, free) if column.title == "Cost")
    assert (cost.cells[0].text, cost.cells[0].note) == ("0.00 EUR", "")


@pytest.mark.parametrize(
    ("ours", "words"),
    [
        ([31.0, 31.1, 31.2], "at 31 % of the time and 1.5 % of the storage"),
        ([29.0, 31.0, 33.0], "at 31 % ± 5 of the time and 1.5 % of the storage"),
        ([20.0, 31.0, 55.0], "at 1.5 % of the storage"),
    ],
)
def test_a_sentence_tells_the_uncertainty_of_a_ratio_only_where_it_is_not_negligible(ours, words):
    of_full = full(took=Took(seconds=Spread.of([99.9, 100.0, 100.1])))
    found = judged(lora(took=Took(seconds=Spread.of(ours))), of_full, reference=1)
    assert f"of the gain of full fine-tuning {words};" in found.sentence
    vague = any("How the time of LoRA at rank 16 compares with that of full fine-tuning" in said for said in found.more)
    assert vague == ("of the time" not in words)


def test_what_might_as_well_take_more_is_no_saving():
    vague, of_full = Took(seconds=Spread.of([60.0, 80.0, 130.0])), Took(seconds=Spread.of([100.0, 101.0, 99.0]))
    found = judged(lora(kept=figure(1.0), size=None, took=vague), full(took=of_full), reference=1)
    assert (found.choice, found.advice[0]) == (
        None,
        "Either will do: neither loses anything that can be told, and no difference in what they take can be told.",
    )


@pytest.mark.django_db
@pytest.mark.parametrize(("ours", "theirs"), [([100.0, 114.0], [350.0, 352.0]), ([550.0, 625.0], [100.0, 100.5])])
def test_what_differs_too_much_to_be_told_is_no_reason_to_choose(ours, theirs):
    took, of_full = Took(seconds=Spread.of(ours)), Took(seconds=Spread.of(theirs))
    found = judged(lora(kept=figure(1.0), size=None, took=took), full(took=of_full), reference=1, seeds=2)
    assert any("How the time of LoRA at rank 16 compares" in said and "differs too much" in said for said in found.more)
    assert " of the time" not in found.sentence
    assert (found.choice, found.advice[0]) == (
        None,
        "Either will do: neither loses anything that can be told, and no difference in what they take can be told.",
    )


def test_a_file_that_was_built_takes_the_place_of_its_estimate(acme):
    comparison = make_comparison(acme, seeds=(1, 2))
    make_measured(comparison, **made(seeds=2))
    verdict.renew(comparison)

    def cells(title: str) -> dict[int, Any]:
        context = verdict.verdict_context(Comparison.objects.get(pk=comparison.pk), acme.owner)
        return {arm.number: cell for row in context["further"] if row.column.title == title for arm, cell in row.cells}

    assert (cells("GGUF file")[0].text, cells("GGUF file")[0].note) == ("about 145 MB", "q8_0, estimated")
    assert not cells("Other GGUF files")
    order = comparison.arms.get(number=0).runs.get(seed=2).run.order
    adapter = make_artifact(order, acme.project, {"adapter_model.safetensors": b"x"}, base_model=acme.base, dataset_version=acme.version)
    make_build(acme.owner, adapter, content=b"GGUF" * 1000)
    make_build(acme.owner, adapter, content=b"GGUF" * 500, quantization="q4_k_m")
    make_build(acme.owner, adapter, content=b"GGUF" * 10, kind="gguf_adapter", quantization="f16")
    make_build(acme.owner, adapter, content=b"GGUF" * 7, quantization="q8_0", passed=False)
    assert (cells("GGUF file")[0].text, cells("GGUF file")[0].note) == ("4.0 kB", "q8_0, built, one seed")
    assert cells("GGUF file")[1].note == "q8_0, estimated"
    assert (cells("GGUF adapter")[0].text, cells("GGUF adapter")[0].note) == ("40 B", "f16, built, one seed")
    assert cells("Other GGUF files")[0].text == "q4_k_m 2.0 kB"
    comparison.refresh_from_db()
    assert comparison.verdict["arms"][0]["gguf_size"]["mean"] == 145_000_000  # what is stored stays the estimate
    told = acme.api.get(f"comparisons/{comparison.pk}").json()["verdict"]["arms"]
    assert (told[0]["gguf_size"]["mean"], told[0]["gguf_built"], told[0]["built"]) == (4000, True, {"q4_k_m": 2000})
    assert (told[1]["gguf_size"]["mean"], told[1]["gguf_built"]) == (145_000_000, False)


@pytest.mark.parametrize(("built", "best"), [((True, True), True), ((False, False), True), ((True, False), False)])
def test_the_smallest_file_is_marked_only_among_files_or_among_estimates(built, best):
    arms = [make(gguf_size=spread(size), gguf_built=was) for make, size, was in zip((lora, full), (4e6, 8e6), built, strict=True)]
    column = next(column for column in verdict_table.further(judged(*arms, reference=1)) if column.title == "GGUF file")
    assert [column.cells[number].is_best for number in (0, 1)] == [best, False]


def test_a_files_size_keeps_its_interval_beside_what_it_is():
    apart = Spread.of([3.9e6, 4e6, 4.1e6])
    column = next(each for each in verdict_table.further(judged(lora(gguf_size=apart), full(), reference=1)) if each.title == "GGUF file")
    assert re.fullmatch(r"q8_0, estimated, ± \d+ kB", column.cells[0].note)


@pytest.mark.django_db
def test_a_file_of_a_seed_that_was_not_measured_counts_in_no_type(acme):
    comparison = make_comparison(acme, seeds=(1, 2))
    told = made(seeds=2)
    for losses in told.values():
        del losses[0, 2]
    make_measured(comparison, **told)
    found = verdict.renew(comparison)
    order = comparison.arms.get(number=0).runs.get(seed=2).run.order
    adapter = make_artifact(order, acme.project, {"adapter_model.safetensors": b"x"}, base_model=acme.base, dataset_version=acme.version)
    make_build(acme.owner, adapter, content=b"GGUF" * 1000)
    make_build(acme.owner, adapter, content=b"GGUF" * 500, quantization="q4_k_m")
    lora = with_built(comparison, found).arm(0)
    assert (lora.gguf_built, lora.built) == (False, {})


@pytest.mark.django_db
def test_an_arm_that_failed_or_was_stopped_is_said(acme):
    comparison = make_comparison(acme, seeds=(1, 2))
    arm_run = comparison.arms.get(number=0).runs.get(seed=2)
    arm_run.run.order.status, arm_run.run.order.error = "failed", "The GPU ran out of memory."
    arm_run.run.order.save()
    told = made(seeds=2)
    for losses in told.values():
        del losses[0, 2]
    make_measured(comparison, **told)
    found = verdict.renew(comparison)
    assert "LoRA: Seed 2 failed: The GPU ran out of memory." in found.more
    assert found.arm(0).seeds == [1]
    assert found.reason == "one_seed"
    arm_run.ended_early = "It could not catch up."
    arm_run.save()
    assert "LoRA: Seed 2 was stopped early: It could not catch up." in verdict.renew(comparison).more


@pytest.mark.django_db
def test_a_sweeps_arm_that_was_stopped_for_being_worse_does_not_leave_the_best_open(acme):
    comparison = make_comparison(acme, seeds=(1, 2, 3))
    comparison.differs = "sweep"
    comparison.arms.get(number=0).runs.exclude(seed=1).update(ended_early="It was worse.")
    told = made(lora=20.0)
    for losses in told.values():
        del losses[0, 2], losses[0, 3]
    make_measured(comparison, **told, of=900)
    found = verdict.renew(comparison)
    assert (found.seeds, found.choice, found.sureness) == (3, 1, "likely")
    assert (found.mean_of, found.held_out_words) == ("1 to 3 seeds", "40 of 900 held-out rows")


@pytest.mark.django_db
def test_models_with_other_tokens_are_compared_by_character(acme):
    comparison = make_comparison(acme, seeds=(1, 2, 3))
    measured = make_measured(comparison, **made())
    path = folder_of(comparison) / "rows.parquet"
    rows = pq.read_table(path).to_pylist()
    for row in rows:
        row["tokens"] = 7 if row["arm"] == 1 else row["tokens"]
    pq.write_table(pa.Table.from_pylist(rows, schema=pq.read_schema(path)), path)
    found = verdict.renew(comparison)
    assert found.unit == "character"
    assert found.arm(1).perplexity is None
    assert found.arm(0).loss.value == pytest.approx(sum(sum(measured.losses("held_out")[0, seed]) for seed in (1, 2, 3)) / 3 / 40 / 40)


@pytest.mark.django_db
def test_the_page_offers_more_seeds_where_one_says_nothing(acme):
    comparison = make_comparison(acme, seeds=(1,))
    make_measured(comparison, **made(seeds=1))
    verdict.renew(comparison)
    browser = Browser()
    browser.force_login(acme.owner.user)
    page = browser.get(f"/comparisons/{comparison.pk}/").content.decode()
    assert "One seed says nothing about chance" in page
    assert "Train 2 more seeds" in page
    viewer = Browser()
    viewer.force_login(make_member(acme.workspace, role="viewer", email="vi@example.com").user)
    theirs = viewer.get(f"/comparisons/{comparison.pk}/").content.decode()
    assert "One seed says nothing about chance" in theirs
    assert "Train 2 more seeds" not in theirs


@pytest.mark.django_db
def test_a_verdict_takes_as_many_queries_with_many_runs_as_with_few(acme, django_assert_max_num_queries):
    small, large = make_comparison(acme, seeds=(1,)), make_comparison(acme, seeds=(1, 2, 3))
    for comparison, seeds in ((small, 1), (large, 3)):
        trained(comparison)
        make_measured(comparison, **made(seeds=seeds))
        verdict.renew(comparison)
    for comparison in (small, large):
        with django_assert_max_num_queries(16):
            verdict.verdict_context(Comparison.objects.get(pk=comparison.pk), acme.owner)


# ── The words, case by case ──


def figure(value: float, half: float = 0.01) -> Figure:
    return Figure(value=value, low=value - half, high=value + half)


def spread(mean: float) -> Spread:
    return Spread.of([mean] * 3)


def arm(number: int, name: str, *, loss: float, half: float = 0.01, seconds: float = 100.0, **columns: Any) -> ArmFigures:
    columns = {
        "gain": figure(2.0 - loss, half),
        "seeds": [1, 2, 3],
        "took": Took(seconds=spread(seconds), memory=spread(seconds * 1e6)),
        **columns,
    }
    return ArmFigures(number=number, name=name, plugin="p", loss=figure(loss, half), **columns)


def judged(*arms: ArmFigures, differs: str = "method", seeds: int = 3, rows: int = 100, **columns: Any) -> Verdict:
    return worded(Verdict(differs=differs, arms=list(arms), seeds=seeds, rows=rows, **columns))


def lora(**columns: Any) -> ArmFigures:
    told = {"loss": 1.01, "seconds": 31.0, "kept": figure(0.987, 0.006), "size": spread(15.0), "forgetting": figure(0.1), **columns}
    return arm(0, "LoRA at rank 16", **told)


def full(**columns: Any) -> ArmFigures:
    return arm(1, "full fine-tuning", **{"loss": 1.0, "size": spread(1000.0), "forgetting": figure(0.3), **columns})


def test_a_method_is_held_against_the_reference():
    found = judged(lora(), full(), reference=1)
    assert found.sentence == (
        "LoRA at rank 16 keeps 98.7 % ± 0.6 of the gain of full fine-tuning "
        "at 31 % of the time, 31 % of the memory and 1.5 % of the storage; it forgets a third as much."
    )
    assert (found.sureness, found.choice, found.reason) == ("sure", 0, "")
    assert found.sureness_words.startswith("Sure: three seeds and 100 held-out rows")
    assert found.advice == [
        "Take LoRA at rank 16: it loses only 1.3 % of the gain, it took 31 % of the time and 31 % of the memory "
        "and its file is a seventieth of the size."
    ]


@pytest.mark.parametrize(
    ("ours", "theirs", "words"),
    [
        (None, figure(0.3), "storage."),
        (figure(0.0, 0.05), figure(0.3), "; it forgets nothing that can be told."),
        (figure(0.0, 0.05), figure(0.0, 0.05), "; neither forgets anything that can be told."),
        (figure(0.2), figure(0.0, 0.05), "; it forgets something, and the other nothing that can be told."),
        (figure(0.28, 0.05), figure(0.3, 0.05), "; which of them forgets more cannot be told."),
        (figure(0.6), figure(0.3), "; it forgets twice as much."),
        (figure(0.13), figure(0.3), "; it forgets 43 % as much."),
    ],
)
def test_what_is_forgotten_is_said_as_far_as_it_can_be_told(ours, theirs, words):
    assert judged(lora(forgetting=ours), full(forgetting=theirs), reference=1).sentence.endswith(words)


def test_no_share_is_printed_of_no_gain():
    found = judged(lora(kept=None), full(gain=figure(-0.005)), reference=1)
    assert found.sentence.startswith(
        "full fine-tuning itself did not gain on held-out rows, as far as can be told, so there is nothing to keep"
    )
    assert "LoRA at rank 16 did gain: its loss fell by 0.990" in found.sentence
    assert (found.sureness, found.reason) == ("open", "no_gain")
    assert "%" not in found.sentence
    worse = judged(lora(kept=None), full(gain=figure(-0.5)), reference=1)
    assert worse.sentence.startswith("full fine-tuning made the model worse on held-out rows")
    unknown = judged(lora(kept=None), ArmFigures(number=1, name="full", plugin="p", seeds=[1, 2], loss=figure(1.0)), reference=1)
    assert unknown.sentence == "What full gained is not known, for its base model was not measured."
    assert unknown.sureness_words == "Without the untouched base model’s loss nothing can be said of a gain."
    unsure = judged(lora(kept=None), full(gain=figure(0.005)), reference=1)
    assert unsure.sentence.startswith("full fine-tuning lowered the loss by 0.005 ± 0.010, which may be chance, so no share of it is told.")
    assert unsure.sureness_words.startswith("Something may have been gained, but not more than chance gives, by three seeds")
    assert found.sureness_words == "As sure as the rows allow: nothing was gained that could be shared."


def test_a_share_with_too_wide_an_interval_is_not_printed():
    found = judged(lora(kept=figure(0.9, 0.4)), full(), reference=1, more_seeds=4)
    assert found.sentence == "How much of the gain of full fine-tuning LoRA at rank 16 keeps cannot be told from this."
    assert found.sureness_words == (
        "Not enough seeds to tell: three seeds and 100 held-out rows leave it open. About 4 more seeds for each arm would settle it."
    )
    assert found.advice == ["Train 4 more seeds of each arm."]
    hopeless = judged(lora(kept=figure(0.9, 0.4)), full(), reference=1)
    assert "More seeds alone would hardly settle it" in hopeless.sureness_words


def test_a_share_that_is_less_sure_is_called_likely():
    found = judged(lora(kept=figure(0.91, 0.11)), full(), reference=1, more_seeds=1)
    assert found.sureness == "likely"
    assert found.sureness_words.endswith("About 1 more seed for each arm would settle it.")
    assert found.choice == 0
    assert found.advice[-1].startswith("Take LoRA at rank 16: it loses nothing that can be told, at most 20 % of the gain, it took 31 %")


def test_an_adapter_may_gain_more_or_make_things_worse():
    more = judged(lora(kept=figure(1.1, 0.02)), full(), reference=1)
    assert more.sentence.startswith("LoRA at rank 16 gains more than full fine-tuning, 110.0 % ± 2.0 of its gain, at 31 %")
    assert more.choice == 0
    assert more.advice[0].startswith("Take LoRA at rank 16: it gains more, it took 31 % of the time")
    worse = judged(lora(loss=2.5, gain=figure(-0.5), kept=figure(-0.5)), full(), reference=1)
    assert worse.sentence.startswith("LoRA at rank 16 made the model worse on held-out rows: the loss rose by 0.500")
    assert worse.advice == ["Take full fine-tuning: LoRA at rank 16 made the model worse."]


def test_what_loses_nothing_and_is_cheaper_in_anything_is_taken():
    slow = judged(
        lora(kept=figure(1.0, 0.03), took=Took(seconds=spread(110.0)), size=spread(16.0)),
        full(took=Took(seconds=spread(100.0))),
        reference=1,
    )
    assert "keeps 100.0 % ± 3.0 of the gain of full fine-tuning at 110 % of the time and 1.6 % of the storage" in slow.sentence
    assert slow.choice == 0
    assert slow.advice == [
        "Take LoRA at rank 16: it loses nothing that can be told and its file is a sixtieth of the size, though it took a little longer."
    ]
    dear = judged(lora(kept=figure(1.0), size=None, seconds=150.0), full(), reference=1)
    assert (dear.choice, dear.advice[0]) == (
        1,
        "Take full fine-tuning: LoRA at rank 16 gains no more that can be told, and it took 1.5 times as long and 1.5 times the memory.",
    )
    alike = judged(lora(kept=figure(1.0), size=None, seconds=100.0), full(), reference=1)
    assert (alike.choice, alike.advice[0][:14]) == (None, "Either will do")


def test_what_surely_loses_leaves_the_reference():
    found = judged(lora(kept=figure(0.92, 0.04)), full(), reference=1)
    assert found.choice == 1
    assert found.advice[-1] == (
        "Take full fine-tuning where the last per cent matters: LoRA at rank 16 surely loses a part of its gain, about 8.0 %. "
        "Where that does not matter, it took 31 % of the time and 31 % of the memory and its file is a seventieth of the size."
    )


@pytest.mark.parametrize(
    "found",
    [
        lambda: judged(lora(kept=figure(0.9, 0.4)), full(), reference=1),
        lambda: judged(lora(), full(), reference=1, seeds=1),
        lambda: judged(lora(), full(), reference=1, rows=12),
        lambda: judged(lora(kept=None), full(gain=figure(-0.5)), reference=1, seeds=1),
        lambda: judged(arm(0, "1e-4", loss=1.0, best=1.0), arm(1, "2e-4", loss=1.5), differs="learning_rate", seeds=1),
    ],
)
def test_what_is_not_told_recommends_nothing(found):
    assert found().choice is None
    assert found().advice
    assert not any("Take " in said for said in found().advice)


def test_a_share_that_may_be_nothing_is_not_printed_as_a_negative_one():
    found = judged(lora(loss=1.98, kept=figure(0.02, 0.1)), full(), reference=1)
    assert found.sentence.startswith("LoRA at rank 16 gained nothing that can be told")
    assert "%" not in found.sentence
    assert (found.choice, found.advice[-1]) == (1, "Take full fine-tuning: LoRA at rank 16 gained nothing that can be told.")


def test_seeds_that_did_not_get_to_their_end_leave_it_likely_at_most():
    found = judged(lora(seeds=[1, 3], missing=["Seed 2 was stopped early: It could not catch up."]), full(), reference=1, seeds=2)
    assert found.sentence.endswith(" This is of the seeds that got to their end (LoRA at rank 16: 2 of 3).")
    assert found.sureness == "likely"
    assert "from two to three seeds" in judged(lora(seeds=[1, 3], missing=["x"]), full(), reference=1, seeds=2, most_seeds=3).sureness_words


def test_what_arms_took_on_other_machines_is_not_compared():
    def on(machine: str, seconds: float) -> Took:
        return Took(seconds=spread(seconds), memory=spread(seconds * 1e6), machines=[machine])

    found = judged(lora(took=on("CPU", 31.0)), full(took=on("NVIDIA L4", 100.0)), reference=1)
    assert "of the gain of full fine-tuning at 1.5 % of the storage;" in found.sentence
    assert any(said.startswith("The arms were trained on different kinds of machines (CPU and NVIDIA L4)") for said in found.more)
    time = next(column for column in verdict_table.headline(found, None) if column.title == "Time")
    assert not any(cell.is_best for cell in time.cells.values())
    assert "Quality against time" not in [plot.title for plot in plots(found, {})]


def test_quantised_arms_and_sweeps_are_told_with_what_their_figures_hide():
    assert any(
        "LoRA at rank 16 learnt on a quantised base model" in said for said in judged(lora(quantization="4bit"), full(), reference=1).more
    )
    rates = [arm(number, f"{number}", loss=1.0 + number / 5, best=1.0 - number) for number in (0, 1)]
    assert any("a little flattering" in said for said in judged(*rates, differs="sweep").more)
    left = judged(rates[0], ArmFigures(number=1, name="1", plugin="p", missing=["x"], stopped_early=3), differs="sweep")
    assert left.sentence.startswith("0 is the only one that was trained to its end: the other was stopped for being worse")
    assert (left.sureness, left.choice) == ("likely", 0)


def test_scores_that_are_all_alike_are_not_taken_for_certain():
    figure_ = share_of(0, [np.ones(20), np.ones(20)])
    assert (figure_.value, figure_.high) == (1.0, 1.0)
    assert figure_.low == pytest.approx(0.8389, abs=1e-4)  # 20 of 20, by Wilson
    found = judged(lora(scores={"exact": figure_}), full(scores={"exact": figure(0.9)}), reference=1)
    exact = next(column for column in verdict_table.further(found) if column.title == "exact")
    assert exact.cells[0].note == "0.839 to 1.000"
    assert not exact.cells[0].is_best
    nothing = share_of(0, [np.zeros(20)])
    assert nothing.high == pytest.approx(0.1611, abs=1e-4)


def test_quality_stands_against_cost_where_it_may_be_seen():
    found = judged(lora(), full(), reference=1)
    costs = Costs({0: Spread.of([0.4, 0.5, 0.6]), 1: spread(1.5)}, "EUR")
    chart = next(plot for plot in plots(found, {}, costs) if plot.title == "Quality against cost")
    assert chart.spots[0].x < chart.spots[1].x
    assert chart.spots[0].left < chart.spots[0].x < chart.spots[0].right
    assert chart.spots[1].left == chart.spots[1].right
    assert "Quality against cost" not in [plot.title for plot in plots(found, {})]


def test_rows_that_are_a_sample_and_seeds_that_differ_are_told():
    found = Verdict(differs="rank", rows=200, rows_of=900, probe_rows=12, own_probe=True, seeds=2, most_seeds=3)
    assert found.held_out_words == "200 of 900 held-out rows"
    assert found.probe_words == "12 of the general rows you chose"
    assert found.mean_of == "2 to 3 seeds"


@pytest.mark.django_db
@pytest.mark.parametrize("differs", ["method", "rank"])
def test_seeds_are_asked_for_to_tell_a_twentieth_of_the_gain_or_the_best_from_the_second(acme, monkeypatch, differs):
    comparison = make_comparison(acme, seeds=(1, 2, 3))
    comparison.differs = differs
    make_measured(comparison, **made())
    asked = []
    monkeypatch.setattr(reckoning, "seeds_needed", lambda wanted, *_: asked.append(wanted))
    found = reckoning.verdict_of(comparison)
    assert asked == [pytest.approx(found.arm(1).gain.value / 20 if differs == "method" else found.arm(0).against.value)]


def test_further_arms_have_a_sentence_each():
    other = arm(2, "QLoRA", loss=1.2, kept=figure(0.8))
    assert any(said.startswith("QLoRA keeps 80.0 % ± 1.0") for said in judged(lora(), full(), other, reference=1).more)


def test_one_seed_few_rows_and_no_result_are_never_sure():
    one = judged(lora(), full(), reference=1, seeds=1)
    assert (one.sureness, one.reason) == ("open", "one_seed")
    assert one.sureness_words.startswith("One seed says nothing about chance")
    few = judged(lora(), full(), reference=1, rows=8)
    assert (few.sureness, few.reason) == ("open", "few_rows")
    assert few.sureness_words.startswith("The rows are too few: 8 held-out rows")
    nothing = judged(ArmFigures(number=0, name="LoRA", plugin="p", missing=["Seed 1 failed: It broke."]))
    assert nothing.sentence == "No arm has a result, so there is nothing to compare."
    assert nothing.more == ["LoRA: Seed 1 failed: It broke."]
    alone = judged(full())
    assert alone.sentence.startswith("Only full fine-tuning has a result, so there is nothing to compare it with. It lowered the loss")
    assert (alone.sureness, alone.reason) == ("open", "nothing")


def test_the_best_of_many_is_named_where_it_lies_apart():
    rates = [
        arm(number, name, loss=loss, best=best)
        for number, name, loss, best in ((0, "1e-4", 1.3, 0.0), (1, "2e-4", 1.1, 1.0), (2, "4e-4", 1.4, 0.0))
    ]
    found = judged(*rates, differs="learning_rate")
    assert found.sentence == (
        "2e-4 is the best of three: its loss on held-out rows is 1.100 ± 0.010 nats per token, 0.200 lower than that of 1e-4."
    )
    assert (found.sureness, found.choice) == ("sure", 1)
    two = judged(*rates[:2], differs="base_model", unit="character")
    assert two.sentence.startswith("2e-4 is better than 1e-4: its loss on held-out rows is 1.100 ± 0.010 nats per character")


def test_arms_that_are_alike_are_told_so_and_the_cheaper_is_advised():
    small, large = arm(0, "Rank 16", loss=1.005, best=0.4, seconds=60.0), arm(1, "Rank 64", loss=1.0, best=0.6)
    found = judged(small, large, differs="rank")
    assert found.sentence == "Rank 16 is as good as Rank 64 within what three seeds can tell."
    assert (found.sureness, found.choice) == ("likely", 0)
    assert found.advice == ["Take Rank 16: nothing better can be told and it took 60 % of the time and 60 % of the memory."]


def test_arms_that_may_be_alike_or_not_are_left_open():
    wide = [arm(number, f"Rank {4**number}", loss=1.0 + number / 50, half=0.3, best=0.5) for number in (1, 2)]
    found = judged(*wide, differs="rank", more_seeds=3)
    assert found.sentence == "Which of the two is the best cannot be told yet: Rank 4 and Rank 16 lie too close together."
    assert found.sureness == "open"
    likely = judged(wide[0].model_copy(update={"best": 0.85}), wide[1], differs="rank")
    assert likely.sentence.startswith("Rank 4 is likely better than Rank 16: its loss")


def test_nobody_is_the_best_where_nobody_gained():
    found = judged(*(arm(number, f"{number}", loss=2.0, best=0.5) for number in (0, 1)), differs="learning_rate")
    assert found.sentence == "None of the two gained anything on held-out rows that can be told from chance."
    assert found.reason == "no_gain"


def test_figures_have_as_many_digits_as_they_are_worth():
    assert plus_minus(figure(1.23456, 0.012)) == "1.235 ± 0.012"
    assert plus_minus(figure(1.23456, 0.4)) == "1.23 ± 0.40"
    assert plus_minus(figure(1.23456, 0.0)) == "1.235 ± 0.000"
    assert plus_minus(None) == "–"
    assert [percent(share) for share in (0.31, 0.0151, 0.0002, 1.2)] == ["31 %", "1.5 %", "0.02 %", "120 %"]
    said = {0.33: "a third as much", 0.5: "half as much", 2.04: "twice as much", 0.58: "58 % as much", 1.6: "1.6 times as much"}
    assert {ratio: times(ratio) for ratio in said} == said

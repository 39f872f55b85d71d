"""The figures of a verdict as columns of a table, which its page, its report and the PDF share: what each says, and which arm is best."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from studio.comparisons.figure_words import percent, plus_minus, share_words
from studio.comparisons.figures import ArmFigures, Figure, Verdict
from studio.comparisons.taken import Costs, Spread
from studio.workspaces.rates import money
from studio.workspaces.templatetags.studio import count, duration, filesize, number, seconds

BETTER = 0.02
"""What an arm takes has to be smaller than all others' by this share to be marked as the best."""


@dataclass(frozen=True)
class Cell:
    text: str = "–"
    note: str = ""
    """The interval or the spread, in short."""
    title: str = ""
    """The same exactly."""
    is_best: bool = False


@dataclass(frozen=True)
class Column:
    title: str
    hint: str
    """What it is, in one sentence for people who have never trained a model."""
    cells: dict[int, Cell] = field(default_factory=dict)
    """By the arm's number."""


@dataclass(frozen=True)
class Row:
    arm: ArmFigures
    cells: list[tuple[Column, Cell]]


@dataclass(frozen=True)
class Turned:
    """A column as a row, with a cell for each arm."""

    column: Column
    cells: list[tuple[ArmFigures, Cell]]


Read = Callable[[ArmFigures], "Figure | Spread | None"]


def headline(verdict: Verdict, costs: Costs | None) -> list[Column]:
    """What decides: quality, what was forgotten, and what it takes. Columns that no arm has anything for are left out."""
    unit = verdict.unit
    columns = [
        of_figures(
            verdict,
            "Loss",
            f"How far the right answers of held-out rows are from what it would say, in nats per {unit}. Lower is better.",
            lambda arm: arm.loss,
            plus_minus,
            lower=True,
        ),
        of_figures(
            verdict,
            "Gain",
            f"By how much training lowered the loss on held-out rows, in nats per {unit}.",
            lambda arm: arm.gain,
            plus_minus,
            lower=False,
        ),
        of_figures(
            verdict,
            "Keeps",
            "How much of what the reference gained over the untouched model it gained as well.",
            lambda arm: arm.kept,
            share_words,
            lower=False,
        ),
        of_figures(
            verdict,
            "Forgets",
            "By how much it became worse on general rows that have nothing to do with the task. Lower is better.",
            lambda arm: arm.forgetting,
            plus_minus,
            lower=True,
        ),
        of_spreads(
            verdict,
            "Time",
            "How long one training took on the worker, without the wait in the queue.",
            lambda arm: arm.took.seconds,
            duration,
            marked=verdict.one_machine,
        ),
        of_spreads(
            verdict, "Memory", "The most memory that training took.", lambda arm: arm.took.memory, filesize, marked=verdict.one_machine
        ),
        of_spreads(
            verdict, "Storage", "What the result takes on disk. Each further variant takes that again.", lambda arm: arm.size, filesize
        ),
        cost_column(verdict, costs),
    ]
    return [column for column in columns if column.cells]


def further(verdict: Verdict) -> list[Column]:
    """Everything else that was measured."""
    names = sorted({name for arm in verdict.arms for name in arm.scores})
    columns = [
        of_figures(
            verdict,
            "Perplexity",
            "Among how many words it is undecided at each step, about. Lower is better.",
            lambda arm: arm.perplexity,
            plus_minus,
            lower=True,
        ),
        *(
            of_figures(verdict, name, "Mean of its answers’ scores, from 0 to 1. Higher is better.", scored(name), plus_minus, lower=False)
            for name in names
        ),
        of_figures(
            verdict,
            "Drift",
            "How far its choice of words has moved from its base model’s on general rows: KL divergence, nats per token.",
            lambda arm: arm.drift,
            plus_minus,
            lower=True,
        ),
        of_figures(
            verdict,
            "Recites",
            "Share of the words with which it goes on exactly as a training row does, once it is given the row’s beginning.",
            lambda arm: arm.memorised,
            share_words,
            lower=True,
        ),
        of_figures(
            verdict,
            "Verbatim answers",
            "Share of the words of its answers that stand in runs of eight or more in a training row.",
            lambda arm: arm.overlap,
            share_words,
            lower=True,
        ),
        of_spreads(
            verdict,
            "GPU hours",
            "Hours of one GPU that one training took; 0 on a processor.",
            lambda arm: arm.took.gpu_hours,
            number,
            marked=verdict.one_machine,
        ),
        of_spreads(
            verdict,
            "Tokens per second in training",
            "How fast it read the rows.",
            lambda arm: arm.took.tokens_per_second,
            count,
            lower=False,
            marked=verdict.one_machine,
        ),
        of_spreads(
            verdict,
            "Energy",
            "What the device used in one training, in watt-hours, where it tells.",
            lambda arm: arm.took.energy,
            lambda value: f"{number(value)} Wh",
            marked=verdict.one_machine,
        ),
        of_spreads(verdict, "Trained numbers", "How many numbers of the model training could change.", lambda arm: arm.trainable, count),
        shares(verdict),
        of_files(
            verdict,
            "GGUF file",
            "The whole model as one file for llama.cpp.",
            lambda arm: arm.gguf_size,
            lambda arm: arm.gguf_built,
            "q8_0",
        ),
        of_files(
            verdict,
            "GGUF adapter",
            "The adapter alone as a file for llama.cpp.",
            lambda arm: arm.gguf_adapter_size,
            lambda arm: arm.gguf_adapter_built,
            "f16",
        ),
        other_files(verdict),
        of_spreads(
            verdict, "First token", "How long an answer takes to begin, on the machine that measured.", lambda arm: arm.first_token, seconds
        ),
        of_spreads(
            verdict,
            "Tokens per second",
            "How fast it answers, on the machine that measured.",
            lambda arm: arm.tokens_per_second,
            number,
            lower=False,
        ),
    ]
    return [column for column in columns if column.cells]


def rows(verdict: Verdict, columns: list[Column]) -> list[Row]:
    return [Row(arm, [(column, column.cells.get(arm.number, Cell())) for column in columns]) for arm in verdict.arms]


def turned(verdict: Verdict, columns: list[Column]) -> list[Turned]:
    """For many columns: their titles have room at the left, and what they mean stands with them."""
    return [Turned(column, [(arm, column.cells.get(arm.number, Cell())) for arm in verdict.measured]) for column in columns]


def of_figures(verdict: Verdict, title: str, hint: str, read: Read, said: Callable[[Figure], str], *, lower: bool) -> Column:
    """The best is marked where its interval lies apart from every other."""
    found = {arm.number: figure for arm in verdict.arms if isinstance(figure := read(arm), Figure)}
    cells = {}
    for own, figure in found.items():
        others = [other for arm, other in found.items() if arm != own]
        best = bool(others) and all(figure.high < other.low if lower else figure.low > other.high for other in others)
        text, _, note = said(figure).partition(" ± ")
        exact = f"{figure.value:.6g}, 95 % interval from {figure.low:.6g} to {figure.high:.6g}"
        cells[own] = Cell(text, ends(figure, said) if one_sided(figure) else f"± {note}" if figure.half else "", exact, best)
    return Column(title, hint, cells)


def one_sided(figure: Figure) -> bool:
    """Whether its interval ends at the figure itself, as where every answer is right."""
    return figure.half > 1e-9 and min(figure.value - figure.low, figure.high - figure.value) < 1e-9


def ends(figure: Figure, said: Callable[[Figure], str]) -> str:
    """0.840 to 1.000, with as many digits as the figure."""
    low, high = (said(figure.model_copy(update={"value": end})).partition(" ± ")[0] for end in (figure.low, figure.high))
    return f"{low} to {high}"


def of_spreads(
    verdict: Verdict, title: str, hint: str, read: Read, said: Callable[[float], str], *, lower: bool = True, marked: bool = True
) -> Column:
    """The best is marked where it is clearly smaller, or larger, than every other, and what they took can be compared."""
    found = {arm.number: spread for arm in verdict.arms if isinstance(spread := read(arm), Spread)}
    return Column(title, hint, {own: cell_of(verdict, found, own, said, lower=lower, marked=marked) for own in found})


def cell_of(verdict: Verdict, found: Mapping[int, Spread], own: int, said: Callable[[float], str], *, lower: bool, marked: bool) -> Cell:
    spread, others = found[own], [other for arm, other in found.items() if arm != own]
    best = marked and bool(others) and all(lies_apart(spread, other) if lower else lies_apart(other, spread) for other in others)
    if spread.low is None or spread.high is None:
        return Cell(said(spread.mean), "one seed" if verdict.most_seeds > 1 else "", f"{spread.mean:.6g} of one seed, so no interval", best)
    end = said(spread.high if spread.is_cut else spread.half)
    around = f"{'up to' if spread.is_cut else '±'} {end}" if spread.half and not is_nought(end) else ""
    return Cell(said(spread.mean), around, f"{spread.mean:.6g}, 95 % interval from {spread.low:.6g} to {spread.high:.6g}", best)


def is_nought(said: str) -> bool:
    """0, 0.00 EUR, 0 B: less than the figure is told to."""
    return not any(sign in said for sign in "123456789")


def lies_apart(less: Spread, more: Spread) -> bool:
    """Whether one is smaller than the other by more than a trifle, and their intervals do not meet."""
    apart = less.high is None or more.low is None or less.high < more.low
    return apart and less.mean < more.mean * (1 - BETTER)


def cost_column(verdict: Verdict, costs: Costs | None) -> Column:
    column = Column("Cost", "What one training cost, by the workspace’s rates.")
    if costs is None:
        return column
    by_arm, currency = costs.by_arm, costs.currency

    def said(value: float) -> str:
        return money(value, currency)

    return replace(column, cells={own: cell_of(verdict, by_arm, own, said, lower=True, marked=verdict.one_machine) for own in by_arm})


def of_files(verdict: Verdict, title: str, hint: str, read: Read, built: Callable[[ArmFigures], bool], name: str) -> Column:
    """Sizes of files, and whether they were built or are an estimate: one that was built is no better than what another may turn out as."""
    alike = len({built(arm) for arm in verdict.arms if read(arm) is not None}) < 2
    column = of_spreads(verdict, title, hint, read, filesize, marked=alike)
    for arm in verdict.arms:
        if cell := column.cells.get(arm.number):
            text, told = (cell.text, "built") if built(arm) else (f"about {cell.text}", "estimated")
            note = ", ".join(part for part in (name, told, cell.note) if part)
            column.cells[arm.number] = replace(cell, text=text, note=note)
    return column


def other_files(verdict: Verdict) -> Column:
    found = {
        arm.number: Cell("; ".join(f"{name} {filesize(size)}" for name, size in arm.built.items())) for arm in verdict.arms if arm.built
    }
    return Column("Other GGUF files", "The whole model in other types, as files that were built.", found)


def shares(verdict: Verdict) -> Column:
    found = {arm.number: Cell(percent(arm.trainable_share)) for arm in verdict.arms if arm.trainable_share}
    return Column("Share of the model", "Trained numbers as a share of the base model’s.", found)


def scored(name: str) -> Read:
    return lambda arm: arm.scores.get(name)

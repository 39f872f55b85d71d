"""The nine rows by which adapters and full fine-tuning are usually compared, each with the case's own numbers."""

from collections.abc import Callable, Iterator, Sequence

from studio.training.advicefacts import Fit, Method, Row
from studio.training.defaults import counted
from studio.training.facts import ModelFacts, Span
from studio.training.form import as_text
from studio.training.recommending import percent, side_by_side, size

Cell = Callable[[Method], str]
UNKNOWN = "not known"


def nine_rows(methods: Sequence[Method], *, base: ModelFacts, clients: int) -> list[Row]:
    """Memory, parameters, speed, storage, ceiling, variants, forgetting, complexity, consumer GPUs: a cell for each method."""
    return [
        Row(name=name, title=title, cells={method.name: cell(method) for method in methods}, note=note, sources=sources)
        for name, title, cell, note, sources in rows_of(methods, base, clients)
    ]


def rows_of(methods: Sequence[Method], base: ModelFacts, clients: int) -> Iterator[tuple[str, str, Cell, str, list[str]]]:
    """(name, title, cell, note, sources)"""
    yield "memory", "Memory", memory, "At the peak of training, on the worker that it fits best.", []
    yield "parameters", "Parameters that learn", parameters, f"Of {counted(base.parameters)} in {base.name}.", []
    yield "speed", "Time and cost", speed, "One run with the suggested settings.", []
    number = f"{clients:,} client{'s' if clients != 1 else ''}"
    yield "storage", "Storage", storage, f"For {number}; adapters share one base, which is counted.", ["lora"]
    yield (
        "ceiling",
        "Quality",
        lambda method: method.quality,
        "What the literature says for such a case, and how much there is room for.",
        [],
    )
    yield "variants", "Variants", variants_of(base), "How results are kept side by side and switched.", ["many_adapters"]
    yield "forgetting", "Forgetting", lambda method: method.forgetting, "Of what the base could do before.", []
    yield "complexity", "Complexity", complexity_of(methods), "What there is to get right.", []
    yield "gpus", "Common GPUs", gpus, "By the estimate for a machine with such a GPU, with what has to be smaller to fit.", []


def shown(method: Method) -> Fit | None:
    best = method.best
    return best if best and best.estimate else None


def memory(method: Method) -> str:
    fit = shown(method)
    if fit is None or fit.estimate is None:
        return UNKNOWN
    found = fit.estimate.memory
    over = found.high > fit.estimate.available
    words = ", too much" if over else ", but it cannot run here" if fit.verdict == "no" else ""
    return f"{size(found.low)} – {size(found.high)} of {size(fit.estimate.available)}{words}"


def parameters(method: Method) -> str:
    return f"{counted(method.trainable)}, {percent(method.share)}"


def speed(method: Method) -> str:
    fit = shown(method)
    if fit is None or fit.estimate is None:
        return UNKNOWN
    cost = f", {fit.cost.low:,.2f} – {fit.cost.high:,.2f} {fit.currency}".rstrip() if fit.cost else ""
    return f"{time_span(fit.estimate.seconds)}{cost}"


def storage(method: Method) -> str:
    return f"{size(method.variant_size)} each, {size(method.storage)} in all"


def variants_of(base: ModelFacts) -> Cell:
    """How many adapters have room where one more whole model would stand: `model / adapter`, in bytes."""

    def cell(method: Method) -> str:
        if method.kind == "full":
            return f"A model of its own each, {size(method.variant_size)}: another one is loaded to switch."
        fitting = max(1, 2 * base.parameters // max(1, method.variant_size))
        return f"{counted(fitting)} in the room of one whole model; switched by name, without loading the base again."

    return cell


def complexity_of(methods: Sequence[Method]) -> Cell:
    lora = next((method for method in methods if method.name == "lora"), None)

    def cell(method: Method) -> str:
        if method.kind == "full":
            other = f" ({as_text(method.learning_rate)}, an adapter’s is {as_text(lora.learning_rate)})" if lora else ""
            return f"Fewer settings, but a learning rate of its own{other}, and a whole model of {size(method.variant_size)} to deliver."
        more = {
            "qlora": " Needs bitsandbytes, and the base is unpacked to be merged.",
            "dora": slower(method, lora),
        }.get(method.name, "")
        file = f"a file of {size(method.variant_size)}"
        return f"Rank ({method.rank}), alpha and targets besides; delivered as {file} beside the base, or merged into it.{more}"

    return cell


def slower(method: Method, lora: Method | None) -> str:
    """By the two estimates on one worker; nothing where there are not both."""
    pair = side_by_side(method, lora) if lora else None
    if pair is None:
        return ""
    (_, own), (_, other) = pair
    return f" Expected to take {own.seconds.high / max(1e-9, other.seconds.high):.1f} times LoRA’s time."


def gpus(method: Method) -> str:
    fitting = [f"{each.gib}" for each in method.gpus if each.verdict == "fits"]
    if not fitting:
        return UNKNOWN if all(each.verdict == "unknown" for each in method.gpus) else "None up to 80 GB."
    larger = [each for each in method.gpus if each.gib >= int(fitting[0])]
    return f"{fitting[0]} GB and more" if len(fitting) == len(larger) else f"{', '.join(fitting)} GB"


def time_span(span: Span) -> str:
    low, high = (time_words(seconds) for seconds in (span.low, span.high))
    return low if low == high else f"{low} – {high}"


def time_words(seconds: float) -> str:
    """42 s, 11 min, 2 h 5 min, 3 days: as the pages write it elsewhere."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    if seconds < 48 * 3600:
        hours, minutes = divmod(round(seconds / 60), 60)
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    return f"{seconds / 86400:.0f} days"

"""Which method the advisor proposes, why, what is to be expected of each, and what nobody can know beforehand. Rules on facts alone."""

from collections.abc import Iterator, Sequence
from typing import Any

from studio.training.advicefacts import GOALS, SURPRISED, Goal, Method, Reason, Recommendation, Surveyed
from studio.training.config import TrainConfig
from studio.training.defaults import LEARNING_RATE, counted
from studio.training.facts import DatasetFacts, HostFacts, ModelFacts

KNOWN = 0.5
"""Bits a token: below that the base says nearly the same already."""
FAR = 1.5
"""Times the loss on general rows, from which the rows count as far from what the base knows."""
USUAL_EPOCHS = TrainConfig().epochs
HASTY = 2.0
"""Times the usual learning rate, from which more forgetting is expected."""


def recommend(
    methods: Sequence[Method], *, base: ModelFacts, data: DatasetFacts, goal: Goal, clients: int, surveyed: Surveyed | None
) -> Recommendation:
    """One method. Where none fits on a worker, the one that needs the least, and the sentence says so."""
    if not methods:
        return Recommendation(method="", sentence="No way to train here learns from such rows.", reasons=[])
    there = {method.name: method for method in methods}
    usable = {name: method for name, method in there.items() if method.verdict == "fits"}
    if not usable and any(method.fits for method in methods):
        return nothing_fits(methods)
    named, why = CHOICES[goal](usable or there, data=data, clients=clients)
    settings = (dict(named.best.settings) if named.best else named.settings) | wider(named)
    reasons = [*why, *memory_reason(named, usable, there), *measured_reasons(surveyed, named)]
    return Recommendation(method=named.name, sentence=sentence_for(named, settings), reasons=reasons, settings=settings)


Chosen = tuple[Method, list[Reason]]


def for_task(found: dict[str, Method], *, data: DatasetFacts, clients: int) -> Chosen:
    """Adapters first: on sets of a client's size they learn as much (Hu et al. 2021; Schulman et al. 2025)."""
    chosen = first(found, "lora", "qlora", "dora", "full")
    if chosen.kind == "full":
        return chosen, [Reason(text="No adapter can be trained here, so all weights are.")]
    reasons = [
        Reason(
            text="For a style or a task, adapters came out like full fine-tuning where the rows were not more than they hold.",
            sources=["lora", "without_regret"],
        )
    ]
    return chosen, [*reasons, *capacity_reasons(chosen), cheaper(chosen, found)]


def for_knowledge(found: dict[str, Method], *, data: DatasetFacts, clients: int) -> Chosen:
    """Full where the rows hold more than any adapter does (Biderman et al. 2024); else an adapter that is wide enough."""
    adapter = first(found, "lora", "qlora", "dora", "full")
    room = adapter.capacity
    if "full" in found and room is not None and room.smallest is None:
        text = f"The {counted(room.tokens)} tokens to learn hold more than an adapter of rank {room.largest}, the widest that pays."
        return found["full"], [
            Reason(text=text, sources=["capacity", "without_regret"]),
            Reason(text="With much new material full fine-tuning learnt more than adapters did.", sources=["learns_less"]),
            invents(),
        ]
    reasons = [*capacity_reasons(adapter), invents()]
    if room is None:
        reasons.insert(0, Reason(text="How much the rows hold is not known, so an adapter is tried first; it costs less."))
    return adapter, reasons


def invents() -> Reason:
    text = "Whichever it is: facts that the base does not know make it invent more. Where answers must be right, hand it the source."
    return Reason(text=text, sources=["new_facts"])


def for_quality(found: dict[str, Method], *, data: DatasetFacts, clients: int) -> Chosen:
    """Nobody knows beforehand, so both are trained and compared; full is the one that cannot be too narrow."""
    chosen = first(found, "full", "dora", "lora", "qlora")
    if chosen.kind == "full":
        return chosen, [
            Reason(
                text="Published runs disagree: equal on small sets of instructions, ahead of adapters on much code and mathematics.",
                sources=["without_regret", "learns_less", "scaling"],
            ),
            Reason(text="The last per cent has to be measured. Compare it with LoRA over several seeds before you decide."),
        ]
    return chosen, [
        Reason(text="Full fine-tuning does not fit on a worker here, and an adapter is what comes next."),
        *([Reason(text="DoRA came out above LoRA of the same rank.", sources=["dora"])] if chosen.name == "dora" else []),
        *capacity_reasons(chosen),
    ]


def for_clients(found: dict[str, Method], *, data: DatasetFacts, clients: int) -> Chosen:
    """One base in memory and one small file for each client (Hu et al. 2021; Sheng et al. 2023)."""
    chosen = first(found, "lora", "qlora", "dora", "full")
    if chosen.kind == "full":
        return chosen, [Reason(text="No adapter can be trained here, so each client gets a whole model.")]
    kept = f"{clients} clients take {size(chosen.storage)}" if clients > 1 else f"Each further client takes {size(chosen.variant_size)}"
    full = found.get("full")
    against = f", against {size(full.storage if clients > 1 else full.variant_size)} as whole models" if full else ""
    return chosen, [
        Reason(text=f"{kept}{against}.", sources=["lora"]),
        Reason(text="All adapters are answered by one base that stands in memory once.", sources=["many_adapters"]),
        *capacity_reasons(chosen),
    ]


def for_smallest(found: dict[str, Method], *, data: DatasetFacts, clients: int) -> Chosen:
    """What the estimates say needs the least (Dettmers et al. 2023 for a base in 4 bits)."""
    chosen = min(found.values(), key=needs)
    sources = ["qlora"] if chosen.name == "qlora" else []
    most = f"up to {size(needs(chosen))}" if needs(chosen) < float("inf") else "as far as can be told"
    reasons = [Reason(text=f"Of all that can run here it takes the least memory, {most}.", sources=sources)]
    if chosen.smallest_gpu:
        reasons.append(Reason(text=f"A GPU of {chosen.smallest_gpu} GB would do."))
    return chosen, [*reasons, *capacity_reasons(chosen)]


CHOICES = {"task": for_task, "knowledge": for_knowledge, "quality": for_quality, "clients": for_clients, "smallest": for_smallest}
assert CHOICES.keys() == GOALS.keys()


def first(found: dict[str, Method], *names: str) -> Method:
    return next((found[name] for name in names if name in found), next(iter(found.values())))


def needs(method: Method) -> float:
    """Bytes at most on its best worker; while there is none, on the common GPU that it needs the least of."""
    best = method.best
    if best and best.estimate:
        return float(best.estimate.memory.high)
    return min((float(each.memory) for each in method.gpus if each.memory), default=float("inf"))


def nothing_fits(methods: Sequence[Method]) -> Recommendation:
    least = min(methods, key=needs)
    reasons = [Reason(text=fit.why) for fit in least.fits[:1] if fit.why]
    gpu = next((method for method in sorted(methods, key=lambda method: method.smallest_gpu or 10**6) if method.smallest_gpu), None)
    if gpu is not None:
        reasons.append(Reason(text=f"{gpu.title} would fit into a GPU of {gpu.smallest_gpu} GB."))
    reasons.append(Reason(text="A smaller base model, or shorter rows, need less."))
    return Recommendation(method="", sentence="None of them fits on a worker here.", reasons=reasons)


def sentence_for(method: Method, settings: dict[str, Any]) -> str:
    rank = settings.get("rank", method.rank)
    return f"{method.title} at rank {rank}." if rank else f"{method.title}."


def wider(method: Method) -> dict[str, Any]:
    """The smallest rank that has room, where the usual one has none; alpha grows with it, so that its strength stays."""
    room = method.capacity
    if room is None or room.enough:
        return {}
    rank = room.smallest or room.largest
    return {"rank": rank, "alpha": 2.0 * rank} if rank > room.rank else {}


def capacity_reasons(method: Method) -> list[Reason]:
    room = method.capacity
    if room is None:
        return []
    bits = f"{room.bits_a_token:.1f} bits a token, as measured" if room.measured else "an assumed 1 bit a token"
    said = f"The {counted(room.tokens)} tokens to learn hold about {counted(room.needed)} bits at {bits}"
    held = f"an adapter of rank {room.rank} holds about {counted(room.holds)}"
    if room.enough:
        text = f"{said}; {held}, which is enough."
    elif room.smallest is not None:
        text = f"{said}; {held}, which is not enough. Rank {room.smallest} is."
    else:
        text = f"{said}; {held}, and rank {room.largest}, the widest that pays, does not hold them either."
    return [Reason(text=text, sources=["capacity", "without_regret"])]


def cheaper(chosen: Method, found: dict[str, Method]) -> Reason:
    """What it saves against full fine-tuning, by the estimates; that it is a small file where there is nothing to hold it against."""
    full, own = found.get("full"), chosen.best
    theirs = full.best if full else None
    if own is None or own.estimate is None or theirs is None or theirs.estimate is None:
        return Reason(text=f"It trains {percent(chosen.share)} of the parameters, and its result is a file of {size(chosen.variant_size)}.")
    time = own.estimate.seconds.high / max(1e-9, theirs.estimate.seconds.high)
    memory = own.estimate.memory.high / max(1, theirs.estimate.memory.high)
    mine, other = own.settings.get("epochs", USUAL_EPOCHS), theirs.settings.get("epochs", USUAL_EPOCHS)
    reads = f", for it reads the rows {mine:g} times instead of {other:g}" if mine > other else ""
    return Reason(
        text=f"It is expected to take {percent(memory)} of the memory of full fine-tuning and {percent(time)} of its time{reads}. Its"
        f" result is {percent(chosen.variant_size / max(1, full.variant_size if full else 1))} as large."
    )


def memory_reason(named: Method, usable: dict[str, Method], there: dict[str, Method]) -> Iterator[Reason]:
    if not named.fits:
        yield Reason(text="No worker is running, so nobody knows yet what fits.")
    for name in ("lora", "full"):
        if name in there and name not in usable and name != named.name and there[name].verdict in ("no", "tight"):
            yield Reason(text=f"{there[name].title} does not fit on a worker here.")


def measured_reasons(surveyed: Surveyed | None, named: Method) -> Iterator[Reason]:
    if surveyed is None:
        return
    share, bits = percent(surveyed.surprising), f"{surveyed.bits:.1f} bits a token"
    yield Reason(text=f"Measured: the answers surprise the base by {bits}, and {share} of the tokens by more than {SURPRISED:.0f} bits.")
    if surveyed.bits < KNOWN:
        yield Reason(text="The base says nearly the same already, so there may be little to learn. Look at its answers first.")
    if surveyed.probe_loss and surveyed.loss > FAR * surveyed.probe_loss:
        yield Reason(text="That is far more than on general rows: the task is far from what it knows.", sources=["learns_less"])
    if named.rates and not named.rates.holds(named.learning_rate):
        text = f"The usual learning rate is above what a short test found to learn, up to {named.rates.high:g}. Begin lower."
        yield Reason(text=text, sources=["range_test"])


def expected_quality(method: Method, *, goal: Goal) -> tuple[str, list[str]]:
    """What the literature says for this case, in a sentence, with its sources."""
    room = method.capacity
    if method.kind == "full":
        if goal == "knowledge":
            return "The highest ceiling where the material is much and new.", ["learns_less", "scaling"]
        return "The ceiling that the others are held against. On few rows adapters reach it.", ["without_regret", "learns_less"]
    if room is not None and not room.enough:
        return "Below full fine-tuning at this rank: the rows hold more than the adapter does.", ["without_regret", "learns_less"]
    if method.name == "qlora":
        return "Like LoRA in published runs; measure it where the last per cent counts.", ["qlora"]
    if method.name == "dora":
        return "Like LoRA or a little better, at low ranks most.", ["dora"]
    if goal == "knowledge":
        return "Behind full fine-tuning on much new material; near it where the adapter has room.", ["learns_less", "without_regret"]
    return "Like full fine-tuning on a set of this size, at its own learning rate.", ["lora", "without_regret"]


def expected_forgetting(method: Method) -> tuple[str, list[str]]:
    """By learning rate before method: what this studio measured, and Kalajdzievski 2024 for the steps."""
    usual = LEARNING_RATE[method.kind]
    own = method.best.settings.get("learning_rate", method.learning_rate) if method.best else method.learning_rate
    if own > HASTY * usual:
        return f"More than usual: its learning rate is {own / usual:.0f} times the usual one.", ["studio", "forgetting_laws"]
    said = "Little at this learning rate: it depends on rate and steps more than on the method."
    return said, ["studio", "intruders"] if method.kind == "lora" else ["studio", "learns_less"]


def what_is_unknown(
    methods: Sequence[Method], *, base: ModelFacts, data: DatasetFacts, hosts: Sequence[HostFacts], surveyed: Surveyed | None
) -> Iterator[str]:
    """Sentences about what this advice does not know."""
    if not hosts:
        yield "No worker has said what machine it runs on, so memory, time and cost are not known."
    if data.tokens is None:
        yield f"The rows were not yet read with {base.name}'s tokenizer, so their lengths and what they hold are guessed or left out."
    if surveyed is None:
        yield "Nobody has looked yet how surprising the rows are to this base: 1 bit a token is an assumption. Measure it first."
    else:
        if surveyed.probe_loss is None:
            yield "The base was not measured on general rows, so how far the task is from what it knows is not known."
        for kind, name in (("lora", "an adapter"), ("full", "full fine-tuning")):
            if kind not in surveyed.rates:
                yield f"No range test was made for {name}, so its learning rate is the usual one."
    yield "How good the answers will be. Losses of other models on other rows are all that was published; a comparison measures it here."
    yield "How much it will forget of what nobody tested. The probe rows show a part of it."
    if any(method.name == "qlora" and method.verdict == "fits" for method in methods):
        yield "What 4 bits cost in quality on these rows: small in published runs, and not measured here."


def percent(share: float) -> str:
    """0.3 %, 12 %, 150 %: as people read a share."""
    value = 100 * share
    return f"{value:.1f} %" if value < 9.95 else f"{value:,.0f} %"


def size(value: float) -> str:
    """98 MB, 1.2 GB: powers of 1000, as disks are sold."""
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if value >= 10 or unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.0f} TB" if value >= 10 else f"{value:.1f} TB"

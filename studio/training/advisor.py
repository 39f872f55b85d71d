"""LoRA, QLoRA or full fine-tuning? What each would take in the case at hand, side by side, before anything is trained.

Arithmetic on facts alone, through the plugins' own estimates. Which one is proposed, and why, is `studio.training.recommending`'s; the nine
rows of the comparison are `studio.training.ninerows`'s.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from studio.training.advicefacts import GOALS, Advice, Fit, Goal, Method, OnGpu, Price, Surveyed, Verdict
from studio.training.asking import estimate_of, issues_of
from studio.training.capacity import capacity
from studio.training.config import LoraConfig
from studio.training.defaults import suggest, values_of
from studio.training.facts import DatasetFacts, Estimate, Gpu, HostFacts, ModelFacts
from studio.training.form import check_config
from studio.training.memory import fitting_changes, planned_steps
from studio.training.ninerows import nine_rows
from studio.training.plugin import TrainingPlugin
from studio.training.recommending import expected_forgetting, expected_quality, recommend, what_is_unknown
from studio.training.registry import missing_packages

__all__ = ["GOALS", "WAYS", "Advice", "Goal", "Price", "Surveyed", "advise"]

GIB = 1 << 30
GPU_SIZES = (8, 12, 16, 24, 48, 80)
"""GiB of common GPUs."""
FREE = 0.95
"""Of a GPU's memory, what its driver and the screen leave."""
MOST_CLIENTS = 10_000


@dataclass(frozen=True)
class Way:
    """One of the methods that are held against each other: a plugin with what makes it that method."""

    name: str
    title: str
    plugin: str
    settings: dict[str, Any]


WAYS = (
    Way("lora", "LoRA", "peft_lora", {"quantization": "none", "variant": "lora"}),
    Way("qlora", "QLoRA, 4 bits", "peft_lora", {"quantization": "4bit", "variant": "lora"}),
    Way("dora", "DoRA", "peft_lora", {"quantization": "none", "variant": "dora"}),
    Way("full", "Full fine-tuning", "full_finetune", {}),
)


Corrected = Callable[[str, str, Estimate], Estimate]
"""What earlier runs have taught about a plugin's estimates on a worker: (plugin, worker, estimate) -> estimate."""


def advise(
    base: ModelFacts,
    data: DatasetFacts,
    hosts: Sequence[HostFacts],
    *,
    goal: Goal = "task",
    clients: int = 1,
    plugins: Mapping[str, TrainingPlugin],
    surveyed: Surveyed | None = None,
    copies: float = 0.0,
    prices: Mapping[str, Price] | None = None,
    corrected: Corrected = lambda plugin, host, estimate: estimate,
    left_out: Sequence[str] = (),
) -> Advice:
    """Every method that a plugin here can do, on every worker, with one recommendation. `copies` is the share of rows that repeat others;
    `left_out` names workers that are here and shall not count.

    Formulas and their sources: memory, time and trainable parameters are the plugins' estimates (`studio.training.memory`); an adapter is
    kept in fp32, 4 bytes a parameter, as peft writes it; a model that was trained whole in bf16, 2 bytes, as
    `studio.ml.modelwriting` writes it; N clients take `base + N · adapter` against `N · model` (Hu et al. 2021, section 4.2).
    """
    clients = min(max(1, clients), MOST_CLIENTS)
    base_size = 2 * base.parameters
    methods: list[Method] = []
    for way in WAYS:
        plugin = plugins.get(way.plugin)
        if plugin is None or data.shape not in plugin.reads or plugin.method == "none":
            continue
        fits = [on_host(way, plugin, base, data, host, prices=prices or {}, corrected=corrected) for host in hosts]
        found = capped(described(way, plugin, base, data, fits, clients=clients, base_size=base_size, surveyed=surveyed, copies=copies))
        quality, quality_sources = expected_quality(found, goal=goal, held=next((each.capacity for each in methods if each.capacity), None))
        forgetting, forgetting_sources = expected_forgetting(found, steps=steps_of(plugin, found, data), surveyed=surveyed)
        told = {"quality": quality, "quality_sources": quality_sources}
        methods.append(found.model_copy(update=told | {"forgetting": forgetting, "forgetting_sources": forgetting_sources}))
    recommendation = recommend(methods, base=base, data=data, goal=goal, clients=clients, surveyed=surveyed)
    rows = nine_rows(methods, base=base, clients=clients)
    said = [*(key for reason in recommendation.reasons for key in reason.sources), *(key for row in rows for key in row.sources)]
    said += [key for method in methods for key in [*method.quality_sources, *method.forgetting_sources]]
    return Advice(
        goal=goal,
        clients=clients,
        base=base.name,
        dataset=data.name,
        base_size=base_size,
        hosts=[host.name for host in hosts],
        left_out=list(left_out),
        methods=methods,
        recommendation=recommendation,
        rows=rows,
        unknown=list(what_is_unknown(methods, base=base, data=data, hosts=hosts, surveyed=surveyed, left_out=left_out)),
        sources=sorted(set(said)),
    )


def on_host(
    way: Way,
    plugin: TrainingPlugin,
    base: ModelFacts,
    data: DatasetFacts,
    host: HostFacts,
    *,
    prices: Mapping[str, Price],
    corrected: Corrected,
) -> Fit:
    """A method on a worker, with the settings nearest to the usual ones that fit there."""
    if missing := missing_packages(plugin, host.packages) if host.packages else []:
        return Fit(host=host.name, verdict="no", why=f"This worker does not have {', '.join(missing)}.")
    settings, config = settings_for(way, plugin, base, data, host)
    if config is None:
        return Fit(host=host.name, verdict="unknown", why=f"{plugin.title} has no such settings.")
    case = (config, base, data, host)
    estimate, doubts = estimate_of(plugin, case)
    if estimate is None:
        return Fit(host=host.name, verdict="unknown", why=doubts[0].message, settings=settings)
    estimate = corrected(plugin.name, host.name, estimate)
    verdict, why = judged(estimate), ""
    if verdict != "fits":
        why = too_large(verdict)
    elif hindrance := next((issue for issue in issues_of(plugin, case) if issue.level == "error"), None):
        verdict, why = "no", hindrance.message
    price = prices.get(host.name)
    return Fit(
        host=host.name,
        verdict=verdict,
        why=why,
        settings=settings,
        estimate=estimate,
        cost=price.of(estimate.seconds) if price else None,
        currency=price.currency if price else "",
    )


def too_large(verdict: Verdict) -> str:
    if verdict == "tight":
        return "The upper end of the estimate is more than the worker has, so the form of a new run refuses it."
    return "It needs more memory than the worker has, also with the smallest batches and shorter rows."


def judged(estimate: Estimate) -> Verdict:
    if estimate.memory.high <= estimate.available:
        return "fits"
    return "tight" if estimate.memory.low <= estimate.available else "no"


def settings_for(
    way: Way, plugin: TrainingPlugin, base: ModelFacts, data: DatasetFacts, host: HostFacts | None
) -> tuple[dict[str, Any], Any]:
    """(settings beside the plugin's defaults, the same as its Config): the suggestions of the case, what makes it this method, and what has
    to be smaller so that it fits. The Config is None where the plugin refuses them.
    """
    kept = way.settings
    found = {name: value for name, value in values_of(suggest(plugin, base=base, data=data, host=host)).items() if name not in kept}
    own = {name: value for name, value in kept.items() if name in plugin.Config.model_fields}
    if len(own) < len(kept):
        return {}, None
    config, _ = check_config(plugin.Config, found | own)
    if config is None:
        return {}, None
    estimate = estimate_of(plugin, (config, base, data, host))[0] if host else None
    if estimate is not None and judged(estimate) != "fits":
        smaller = nearest(plugin, config, base, data, host, kept=own)
        config = config if smaller is None else smaller
    defaults = plugin.Config()
    return {name: value for name, value in config if value != getattr(defaults, name)}, config


def nearest(
    plugin: TrainingPlugin, config: Any, base: ModelFacts, data: DatasetFacts, host: HostFacts | None, *, kept: dict[str, Any]
) -> Any:
    """The nearest settings that fit and are still this method; None where there are none, or the plugin cannot say."""
    try:
        found = fitting_changes(plugin.estimate, config, base, data, host)  # type: ignore[arg-type]
    except (Exception, SystemExit):  # a stranger's estimate, which `estimate_of` puts into words
        return None
    return found if found is not None and all(getattr(found, name) == value for name, value in kept.items()) else None


def described(
    way: Way,
    plugin: TrainingPlugin,
    base: ModelFacts,
    data: DatasetFacts,
    fits: list[Fit],
    *,
    clients: int,
    base_size: int,
    surveyed: Surveyed | None,
    copies: float,
) -> Method:
    """A method as far as no worker is needed for it."""
    settings, found = settings_for(way, plugin, base, data, None)
    config = plugin.Config() if found is None else found
    adapter = isinstance(config, LoraConfig)
    bits = surveyed.bits if surveyed else None
    room = capacity(config, base, data, bits_a_token=bits, copies=copies) if isinstance(config, LoraConfig) else None
    gpus = list(on_gpus(way, plugin, base, data))
    known = next((fit.estimate for fit in fits if fit.estimate), None)
    trainable = known.trainable_parameters if known else (room.parameters if room else base.parameters)
    variant = 4 * trainable if adapter else base_size
    return Method(
        name=way.name,
        title=way.title,
        plugin=plugin.name,
        kind="lora" if adapter else "full",
        fits=fits,
        trainable=trainable,
        share=trainable / max(1, base.parameters),
        variant_size=variant,
        storage=storage_for(clients, variant=variant, base_size=base_size, shares=adapter),
        gpus=gpus,
        capacity=room,
        settings=settings,
        rank=config.rank if isinstance(config, LoraConfig) else None,
        learning_rate=config.learning_rate,
        rates=surveyed.rates.get("lora" if adapter else "full") if surveyed else None,
    )


def capped(method: Method) -> Method:
    """With a learning rate that is no higher than the one from which a range test found nothing to be gained, where it got that far."""
    if method.rates is None or method.rates.holds(method.learning_rate):
        return method
    lower = {"learning_rate": method.rates.high}
    fits = [fit.model_copy(update={"settings": fit.settings | lower}) for fit in method.fits]
    return method.model_copy(update={"fits": fits, "settings": method.settings | lower})


def steps_of(plugin: TrainingPlugin, method: Method, data: DatasetFacts) -> int | None:
    config, _ = check_config(plugin.Config, method.proposed)
    return planned_steps(config, rows=data.train) if config is not None else None


def storage_for(clients: int, *, variant: int, base_size: int, shares: bool) -> int:
    """`base + N · adapter`, or `N · model` (Hu et al. 2021, section 4.2: adapters share one copy of the base)."""
    return base_size + clients * variant if shares else clients * variant


def on_gpus(way: Way, plugin: TrainingPlugin, base: ModelFacts, data: DatasetFacts) -> Iterator[OnGpu]:
    """Machines that do not exist, with one GPU of each common size and all packages."""
    for gib in GPU_SIZES:
        host = HostFacts(
            name=f"{gib} GB",
            cpus=8,
            memory=256 * GIB,
            gpus=[Gpu(name=f"{gib} GB", memory=round(FREE * gib * GIB))],
            bf16=True,
            gflops=50_000,
            packages=dict.fromkeys(("bitsandbytes", *plugin.requires), "any"),
        )
        _, config = settings_for(way, plugin, base, data, host)
        estimate = estimate_of(plugin, (config, base, data, host))[0] if config is not None else None
        yield OnGpu(gib=gib, verdict=judged(estimate) if estimate else "unknown", memory=estimate.memory.high if estimate else 0)

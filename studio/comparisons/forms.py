"""A new comparison as it is being put together: what was typed, the arms that it makes, and what they would take."""

from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from typing import Any

from django.http import Http404, HttpRequest

from studio.basemodels.models import BaseModel
from studio.comparisons import metrics, searching
from studio.comparisons.arms import (
    ArmSpec,
    Draft,
    Way,
    Wish,
    arms_of,
    finished,
    shared_budget,
    suggested,
    usual_rank,
    usual_rates,
    ways,
    with_reference,
)
from studio.comparisons.models import Comparison
from studio.comparisons.outlook import Outlook, asked_of, outlook_of
from studio.comparisons.services import MOST_ARMS, MOST_RUNS, SEEDS, refuse_odd
from studio.comparisons.sweeping import Sweep, first_points, name_of, new_sweep_of
from studio.datasets.models import DatasetVersion
from studio.errors import UserError
from studio.runs import services as runs
from studio.runs.costs import Tariff, tariff_of
from studio.runs.models import Run
from studio.training import HostFacts, TrainingPlugin
from studio.training.config import LoraConfig
from studio.training.form import NUMBER, as_text, check_config, form_fields, typed_value
from studio.workspaces.models import Project

METHODS_AT_FIRST = ("lora", "full")
BUDGET = ("epochs", "max_steps", "max_length")
SWEEPS = [
    ("tpe", "One after the other, by what the earlier ones came to (TPE)"),
    ("random", "Drawn by chance"),
    ("grid", "Every combination"),
]


class ComparisonForm:
    """What was sent, over what the address and the run that it is like say. Nothing is kept between requests."""

    def __init__(self, request: HttpRequest, project: Project, *, like: Run | None = None):
        self.member: Any = request.member  # type: ignore[attr-defined]
        self.project, self.like = project, like
        self.sent = request.POST if request.method == "POST" else request.GET
        self.is_sent = request.method == "POST"
        self.errors: dict[str, str] = {}
        seen = DatasetVersion.objects.for_action(request, "dataset.view").filter(facts__isnull=False)
        self.versions = [
            version
            for version in seen.filter(dataset__project=project).select_related("dataset__project").order_by("-created_at")
            if not version.dataset.held_out
        ]
        self.probes = list(seen.filter(dataset__project__client=project.client).select_related("dataset").order_by("-created_at")[:100])
        self.models = list(BaseModel.objects.for_action(request, "base_model.view").filter(facts__isnull=False).order_by("-created_at"))
        self.ways = ways(self.host)
        self.version = self.chosen(self.versions, "dataset_version", like.dataset_version_id if like else None)
        self.model = self.chosen(self.models, "base_model", like.base_model_id if like else None)

    def chosen(self, rows: list[Any], name: str, pk: Any) -> Any:
        """The row that was named, else the first. A form that names another's, or what is gone, is not answered with something else."""
        wanted = self.sent.get(name) or str(pk or "")
        row = next((row for row in rows if str(row.pk) == wanted), None)
        if row is None and self.is_sent and self.sent.get(name):
            raise Http404
        return row or (rows[0] if rows else None)

    def several(self, rows: list[Any], name: str) -> list[Any]:
        wanted = self.sent.getlist(name)
        found = [row for row in rows if str(row.pk) in wanted]
        if self.is_sent and len(found) < len(set(wanted)):
            raise Http404
        return found

    def text(self, name: str) -> str:
        return str(self.sent.get(name, "")).strip()

    @property
    def name(self) -> str:
        return self.text("name")

    @cached_property
    def differs(self) -> str:
        wanted = self.text("differs")
        return wanted if wanted in Comparison.Differs.values else Comparison.Differs.METHOD.value

    @cached_property
    def host(self) -> HostFacts | None:
        return runs.training_host()

    @cached_property
    def tariff(self) -> Tariff | None:
        return tariff_of(self.project.client.workspace, self.host)

    @cached_property
    def chosen_ways(self) -> list[str]:
        """Keys of the methods that are compared."""
        if self.is_sent or "ways" in self.sent:
            return self.sent.getlist("ways")
        mine = self.like_way.key if self.like_way else "lora"
        return list(dict.fromkeys([mine, *(key for key in METHODS_AT_FIRST if key != mine)]))[:2]

    @cached_property
    def like_way(self) -> Way | None:
        """The way that the run is of."""
        if self.like is None:
            return None
        same = [way for way in self.ways if way.plugin.name == self.like.plugin]
        config = self.like.config
        exact = (way for way in reversed(same) if all(config.get(name) == value for name, value in way.changes.items()))
        return next(exact, None)

    @cached_property
    def way(self) -> Way:
        """The one way, where something else than the method differs."""
        wanted = self.text("way") or (self.like_way.key if self.like_way else "")
        return next((way for way in self.ways if way.key == wanted), self.ways[0])

    @cached_property
    def like_settings(self) -> tuple[TrainingPlugin, dict[str, Any]] | None:
        return (self.like_way.plugin, self.like.config) if self.like and self.like_way else None

    def numbers(self, name: str, kind: Callable[[str], Any], *, label: str) -> tuple[Any, ...]:
        """`8, 16, 64` as numbers; an error beside the field where it is not."""
        parts = [part for part in self.text(name).replace(";", ",").replace(" ", ",").split(",") if part]
        try:
            found = tuple(kind(part) for part in parts)
        except ValueError:
            self.errors[name] = f"{label}, with commas between them."
            return ()
        if len(set(found)) < len(found):
            self.errors[name] = "One of them stands there twice."
        elif len(found) > MOST_ARMS:
            self.errors[name] = f"At most {MOST_ARMS}."
        return found

    @cached_property
    def seeds(self) -> tuple[int, ...]:
        if not self.text("seeds"):
            return SEEDS if self.differs != Comparison.Differs.SWEEP else SEEDS[:1]
        return self.numbers("seeds", whole_number, label="Whole numbers, such as 1, 2, 3")

    def setting(self, plugin: TrainingPlugin, name: str, *, field: str = "") -> Any:
        """One setting as it was typed, judged by the plugin's own bounds; None where nothing was."""
        text, field = self.text(field or name), field or name
        if not text:
            return None
        known = next((each for each in form_fields(plugin.Config) if each.name == name), None)
        if known is None:
            return None
        try:
            value = typed_value(known, text)
        except ValueError:
            self.errors[field] = known.rule
            return None
        if said := check_config(plugin.Config, {name: value})[1].get(name):
            self.errors[field] = said
            return None
        return value

    def wish(self) -> Wish:
        """What was typed. Raises UserError where that cannot be compared at all; what is wrong in a field stands in `errors`."""
        if self.version is None or self.model is None:
            raise UserError("Choose a dataset and a base model.")
        by_method = self.differs == Comparison.Differs.METHOD
        taken = [way for way in self.ways if way.key in self.chosen_ways] if by_method else [self.way]
        plugin = taken[0].plugin if taken else self.ways[0].plugin
        budget = {name: value for name in BUDGET if (value := self.setting(plugin, name)) is not None}
        if (size := self.setting(plugin, "batch_size", field="effective_batch")) is not None:
            budget["effective_batch"] = size
        rank_of = next((way.plugin for way in taken if issubclass(way.plugin.Config, LoraConfig)), None)
        rank = self.setting(rank_of, "rank") if rank_of else None
        rates = {way.key: rate for way in taken if (rate := self.setting(way.plugin, "learning_rate", field=f"rate_{way.key}")) is not None}
        made = Wish(
            base=self.model,
            version=self.version,
            differs=self.differs,
            ways=tuple(taken),
            budget=budget,
            settings={"rank": rank} if rank else {},
            rates=rates,
            ranks=self.numbers("ranks", whole_number, label="Whole numbers, such as 8, 16, 64") if self.text("ranks") else Wish.ranks,
            targets=self.targets() or Wish.targets,
            learning_rates=self.numbers("learning_rates", real_number, label="Numbers, such as 1e-4, 2e-4, 4e-4"),
            bases=tuple(self.several(self.models, "bases")),
            versions=tuple(self.several(self.versions, "versions")),
            like=self.like_settings,
        )
        if self.differs == Comparison.Differs.RANK:
            self.judge(plugin, "rank", made.ranks, field="ranks")
        if self.differs == Comparison.Differs.LEARNING_RATE:
            self.judge(plugin, "learning_rate", made.learning_rates, field="learning_rates")
        if self.differs == Comparison.Differs.LEARNING_RATE and not made.learning_rates:
            made = Wish(**vars(made) | {"learning_rates": usual_rates(made, host=self.host)})
        return made

    def judge(self, plugin: TrainingPlugin, name: str, values: tuple[Any, ...], *, field: str) -> None:
        """Says beside `field` what the plugin's own bounds have against one of the values."""
        for value in values:
            if said := check_config(plugin.Config, {name: value})[1].get(name):
                self.errors.setdefault(field, said)

    def targets(self) -> tuple[tuple[str, ...], ...]:
        lines = self.text("targets").splitlines()
        return tuple(tuple(part for part in line.replace(",", " ").split()) for line in lines if line.replace(",", " ").strip())

    def sweep(self, plugin: TrainingPlugin) -> Sweep | None:
        """What the sweep was said to be; None where nothing is swept. What is wrong stands beside its field."""
        if self.differs != Comparison.Differs.SWEEP:
            return None
        by = self.text("sweep_by") or "tpe"
        most = self.numbers("sweep_most", whole_number, label="A whole number")
        space = searching.space_of(self.sent, plugin, is_sent=self.is_sent, usual=self.usual, by=by)
        told = {"by": by, "space": space, "most": most[0] if most else 8, "prune": not self.is_sent or bool(self.text("stops_hopeless"))}
        try:
            return new_sweep_of(told, plugin)
        except UserError as problem:
            raise UserError(problem.message, fields={place_of(name): said for name, said in problem.fields.items()}) from problem

    @cached_property
    def usual(self) -> dict[str, Any]:
        """What suits the way, the base model and the rows, by the setting's name."""
        return suggested(self.way.plugin, self.model, self.version, self.host) if self.model and self.version else {}

    @cached_property
    def searched(self) -> tuple[list[searching.Searched], list[searching.Searched]]:
        return searching.offered(self.sent, self.way.plugin, is_sent=self.is_sent, usual=self.usual, errors=self.errors)

    @property
    def opens_further(self) -> bool:
        """Whether a setting that is folded away is searched, or wrong."""
        return any(each.is_chosen or each.error for each in self.searched[1])

    def arms(self) -> tuple[list[ArmSpec], Sweep | None]:
        """The arms, and for a sweep those that it begins with."""
        if self.differs == Comparison.Differs.SWEEP:
            return self.swept
        return with_reference(arms_of(self.wish(), host=self.host)), None

    @cached_property
    def swept(self) -> tuple[list[ArmSpec], Sweep]:
        """What a sweep begins with."""
        wish, sweep, plugin = self.wish(), self.sweep(self.way.plugin), self.way.plugin
        assert sweep is not None
        alone = Draft(self.way.title, self.way, wish.base, wish.version)
        budget, rank = shared_budget(wish, [alone], host=self.host), wish.settings.get("rank") or usual_rank(wish, host=self.host)

        def spec_at(point: dict[str, Any]) -> ArmSpec:
            draft = replace(alone, name=name_of(point, sweep, plugin), changes=point)
            return finished(wish, draft, budget=budget, rank=rank, host=self.host)

        points = first_points(sweep, plugin, lambda point: asked_of(spec_at(point))[2])
        return with_reference([spec_at(point) for point in points]), sweep

    def outlook(self) -> Outlook | None:
        """What the arms would take; None where something has to be mended first, which stands in `errors`."""
        try:
            specs, sweep = self.arms()
            if not self.errors:
                refuse_odd(specs, self.seeds, sweep.model_dump() if sweep else None)
        except UserError as problem:
            self.errors |= problem.fields or {"": problem.message}
            return None
        if not specs:
            return None
        made = outlook_of(specs, seeds=len(self.seeds), sweep=sweep)
        broken = next((line for line in made.lines if line.error), None)
        if broken and not self.errors:  # else it is said beside the field that it came from
            self.errors.setdefault("arms", f"{broken.spec.name}: {broken.error}")
        if made.run_count > MOST_RUNS:
            self.errors["seeds"] = f"{made.run_count} runs; at most {MOST_RUNS} are made."
        return made

    def probe(self) -> DatasetVersion | None:
        wanted = self.text("probe")
        found = next((version for version in self.probes if str(version.pk) == wanted), None)
        if wanted and found is None:
            raise Http404
        return found

    @property
    def stops_hopeless(self) -> bool:
        return bool(self.text("stops_hopeless")) if self.is_sent else True

    @cached_property
    def chosen_metrics(self) -> list[str]:
        return self.sent.getlist("metric") if self.is_sent else list(metrics.AT_FIRST)

    def rates(self) -> list[dict[str, str]]:
        """A field for each way's own learning rate."""
        names = {way.key: f"rate_{way.key}" for way in self.ways}
        usual = {way.key: usual_rates(Wish(self.model, self.version, "method", (way,)), host=self.host)[1] for way in self.ways}
        return [
            {
                "name": names[way.key],
                "title": way.title,
                "value": self.text(names[way.key]),
                "usual": as_text(usual[way.key]),
                "error": self.errors.get(names[way.key], ""),
            }
            for way in self.ways
        ]

    def offers(self) -> list[metrics.Offer]:
        judges = metrics.judges_for(self.member, self.project)
        return metrics.offers(self.sent, chosen=self.chosen_metrics, judges=judges, errors=self.errors)


def place_of(fault: str) -> str:
    """The field beside which a fault of a sweep stands: `sweep.rank` is of `search_rank`."""
    last = fault.rpartition(".")[2]
    if last in ("by", "most"):
        return f"sweep_{last}"
    return "search" if last in ("sweep", "space") else searching.field_of(last)


def whole_number(text: str) -> int:
    """As a person types it. Raises ValueError for anything else."""
    if not text.isascii() or not text.isdigit() or len(text) > 10:
        raise ValueError(text)
    return int(text)


def real_number(text: str) -> float:
    if not NUMBER.fullmatch(text) or not 0 < float(text) < 1:
        raise ValueError(text)
    return float(text)


def placeholders(form: ComparisonForm) -> dict[str, str]:
    """What stands in an empty field: what suits the case."""
    if form.model is None or form.version is None:
        return {}
    try:
        wish = form.wish()
        specs, _ = form.arms()
    except UserError:
        return {}
    config = check_config(runs.plugin_of(specs[0].plugin).Config, specs[0].config)[0] if specs else None
    if config is None:
        return {}
    told = config.model_dump(mode="json")
    return {name: as_text(told[name]) for name in BUDGET} | {
        "effective_batch": as_text(told["batch_size"] * told["gradient_accumulation"]),
        "rank": as_text(usual_rank(wish, host=form.host) or ""),
    }

"""Makes runs: what is asked of a plugin before, and what is recorded when it ends."""

from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from django.db import transaction
from django.db.models import QuerySet
from django.utils import timezone

from studio.audit.services import record
from studio.basemodels.models import BaseModel
from studio.datasets.models import DatasetVersion
from studio.datasets.shaping import HELD_OUT, overlaps
from studio.errors import UserError
from studio.orders.kinds import KINDS
from studio.orders.models import Order, Slot
from studio.orders.preempting import make_room
from studio.orders.quotas import refuse_gpu_hours, refuse_storage
from studio.orders.services import place, request_pause, request_stop, resume
from studio.runs.accuracy import Accuracy, accuracy_on, corrected
from studio.runs.models import Run
from studio.runs.queue import When
from studio.training import Estimate, HostFacts, Issue, TrainingPlugin
from studio.training.asking import estimate_of, host_issues_of, issues_of
from studio.training.carrying import Carried, carry
from studio.training.defaults import Suggestion, suggest
from studio.training.form import check_config
from studio.training.registry import Loaded, find, missing_packages
from studio.workspaces.models import Client, Member, Project, hold

PROMPTS = ["Introduce yourself in one sentence.", "What is the capital of France?", "Give three tips for staying healthy."]
"""Asked at every evaluation where the person names none."""
DOUBLE_CLICK = timedelta(seconds=5)


@dataclass(frozen=True)
class Forecast:
    """What is known before a run: what speaks against it, and what it will take."""

    issues: list[Issue]
    estimate: Estimate | None
    accuracy: Accuracy | None = None
    """How near such estimates came on the worker that was planned with; the estimate is already corrected by it."""

    @property
    def errors(self) -> list[Issue]:
        return [issue for issue in self.issues if issue.level == "error"]


def training_host() -> HostFacts | None:
    """The slot with the most memory that would take a run, as it last said of itself."""
    slots = [HostFacts.model_validate(slot.facts) for slot in Slot.objects.filter(queue="train") if slot.is_alive and slot.facts]
    return max(slots, key=lambda host: max([gpu.memory for gpu in host.gpus], default=host.memory), default=None)


def host_of(worker: str) -> HostFacts | None:
    """The machine of the worker that took an order; where it has not said, the one that was planned with."""
    slot = Slot.objects.filter(name=worker).first()
    return HostFacts.model_validate(slot.facts) if slot and slot.facts else training_host()


def plugin_of(name: str) -> TrainingPlugin:
    try:
        return find(name)
    except UserError as error:
        raise UserError(error.message, fields={"plugin": error.message}) from error


def parse_config(plugin: TrainingPlugin, config: dict[str, Any]) -> Any:
    parsed, errors = check_config(plugin.Config, config)
    if parsed is None:
        raise UserError("Some settings cannot be used.", fields=errors, code="invalid_config")
    return parsed


def forecast(plugin: TrainingPlugin, config: Any, *, base: BaseModel, version: DatasetVersion) -> Forecast:
    host = training_host()
    if host is None:
        waits = "No worker is running, so memory and time cannot be estimated. The run would wait for one."
        return Forecast([*row_issues(version), Issue(level="warning", message=waits)], None)
    facts, data = base.model_facts, version.dataset_facts(base)
    case = (config, facts, data, host)
    estimate, doubts = estimate_of(plugin, case)
    accuracy = accuracy_on(host.name, plugin=plugin.name, workspace=base.workspace)
    issues = [*shape_issues(plugin, version), *issues_of(plugin, case), *doubts, *row_issues(version)]
    return Forecast(issues, corrected(estimate, accuracy.correction) if estimate else None, accuracy)


def shape_issues(plugin: TrainingPlugin, version: DatasetVersion) -> list[Issue]:
    shape = (version.facts or {}).get("shape")
    if shape in plugin.reads:
        return []
    return [
        Issue(
            level="error",
            field="dataset_version",
            message=f"{plugin.title} learns from {' or '.join(plugin.reads)} rows; this dataset has {shape} rows.",
        )
    ]


def row_issues(version: DatasetVersion) -> list[Issue]:
    """What is held out is not trained on. Single rows of it are no error: whoever starts the run may mean them."""
    if version.dataset.held_out:
        return [Issue(level="error", field="dataset_version", message=HELD_OUT)]
    return [Issue(level="warning", field="dataset_version", message=overlap.sentence) for overlap in overlaps(version)]


def ask(plugin_name: str, config: dict[str, Any], *, base: BaseModel, version: DatasetVersion) -> tuple[Any, Forecast]:
    """The settings, judged, and what a run with them would take. Raises UserError where that cannot even be asked."""
    if not base.is_ready:
        raise UserError("The base model is not here yet.", fields={"base_model": "Wait until it is ready, or choose another."})
    if not version.is_ready:
        raise UserError(
            "The dataset is not ready.", fields={"dataset_version": "Wait until its rows have been read, or choose another version."}
        )
    plugin = plugin_of(plugin_name)
    parsed = parse_config(plugin, config)
    return parsed, forecast(plugin, parsed, base=base, version=version)


def suggestions(plugin_name: str, *, base: BaseModel, version: DatasetVersion) -> dict[str, Suggestion]:
    """What the form proposes for this base model and these rows on the workers that there are."""
    return suggest(plugin_of(plugin_name), base=base.model_facts, data=version.dataset_facts(base), host=training_host())


def obstacle(loaded: Loaded) -> Issue | None:
    """Why no run can be started with a plugin: it is broken, or the worker is not fit for it or lacks a package. None where one can."""
    if loaded.plugin is None:
        return Issue(level="error", message=loaded.reason)
    host = training_host()
    if host is None:
        return None
    if errors := [issue for issue in host_issues_of(loaded.plugin, host) if issue.level == "error"]:
        return errors[0]
    missing = missing_packages(loaded.plugin, host.packages)
    return Issue(level="error", message=f"The worker does not have {', '.join(missing)}.") if missing else None


def create_run(
    member: Member,
    *,
    project: Project,
    name: str,
    plugin_name: str,
    config: dict[str, Any],
    base: BaseModel,
    version: DatasetVersion,
    prompts: list[str] | None = None,
    when: When | None = None,
    by_hand: bool = False,
) -> Run:
    """A queued run, in one transaction with its audit record; refused with a sentence beside each field.

    `by_hand`: the same run asked for twice within DOUBLE_CLICK is one run.
    """
    if version.dataset.project_id != project.pk:
        raise UserError("This dataset is another project's.", fields={"dataset_version": "Choose a dataset of this project."})
    parsed, outlook = ask(plugin_name, config, base=base, version=version)
    if outlook.errors:
        fields = {issue.field or "plugin": issue.message for issue in outlook.errors}
        raise UserError(outlook.errors[0].message, fields=fields, code="invalid_config")
    wanted = {
        "plugin": plugin_name,
        "config": parsed.model_dump(mode="json"),
        "base_model": base,
        "dataset_version": version,
        "prompts": (prompts if prompts else PROMPTS)[:8],
    }
    with transaction.atomic():
        refuse_over_quota(project.client)
        hold(project)
        runs = Run.objects.filter(project=project)
        if by_hand and (same := just_started(runs.filter(order__created_by=member.user), wanted)):
            return same
        run: Run = Run.objects.create(
            project=project,
            name=" ".join(name.split())[:120] or f"Run {runs.count() + 1}",
            estimate=outlook.estimate.model_dump(mode="json") if outlook.estimate else None,
            correction=outlook.accuracy.correction if outlook.accuracy else {},
            order=place(member, kind="train", client=project.client, **(when or When()).columns()),
            **wanted,
        )
        record(member, "run.create", run, change={"plugin": [None, plugin_name]})
        transaction.on_commit(lambda: make_room(run.order.queue))
    return run


def refuse_over_quota(client: Client) -> None:
    """A run leaves something to store, and may use a GPU. Called inside the transaction that starts it."""
    refuse_storage(client)
    refuse_gpu_hours(client)


def just_started(runs: "QuerySet[Run]", wanted: dict[str, Any]) -> Run | None:
    recent = runs.filter(created_at__gt=timezone.now() - DOUBLE_CLICK)
    return next((run for run in recent if all(getattr(run, name) == value for name, value in wanted.items())), None)


def clone_run(
    member: Member,
    run: Run,
    *,
    settings: dict[str, Any],
    name: str = "",
    plugin_name: str = "",
    base: BaseModel | None = None,
    version: DatasetVersion | None = None,
    prompts: list[str] | None = None,
) -> tuple[Run, list[str]]:
    """A new run that differs from `run` in what is given, and what else had to change for another way to train, in sentences."""
    plugin_name = plugin_name or run.plugin
    taken = Carried(run.config, [])
    if plugin_name != run.plugin:
        taken = carry(run.config, old=plugin_of(run.plugin), new=plugin_of(plugin_name))
    copy = create_run(
        member,
        project=run.project,
        name=name or f"{run.name} (copy)",
        plugin_name=plugin_name,
        config=taken.values | settings,
        base=base or run.base_model,
        version=version or run.dataset_version,
        prompts=prompts or run.prompts,
    )
    return copy, taken.notices


def stop_run(member: Member, run: Run, *, discard: bool = False) -> None:
    """Ends a run early; what was learnt is kept unless `discard`."""
    with transaction.atomic():
        request_stop(run.order, discard=discard)
        record(member, "run.stop", run, change={"discard": [None, discard]})


def is_pausable(run: Run) -> bool:
    """Whether a page should offer to pause it."""
    order = run.order
    return KINDS[order.kind].resumes(order) and order.is_live and not order.stop_requested_at and order.status != Order.Status.FINISHING


def pause_run(member: Member, run: Run) -> None:
    """Frees the worker: the run saves a state, and can be resumed from there."""
    plugin = plugin_of(run.plugin)
    if not plugin.resumes:
        raise UserError(f"{plugin.title} cannot go on from where it was, so its runs cannot be paused. Stop the run, or let it end.")
    with transaction.atomic():
        request_pause(run.order)
        record(member, "run.pause", run)


def resume_run(member: Member, run: Run) -> None:
    """Goes on from the last state of a run that was paused or has failed."""
    if run.dataset_version.dataset.held_out:
        raise UserError(HELD_OUT)
    with transaction.atomic():
        refuse_over_quota(run.audit_client)
        resume(run.order)
        record(member, "run.resume", run)

"""A comparison as a file of YAML that a person can read, keep and start again; and such a file, whoever wrote it, as what to start."""

from typing import Any

from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404
from django.utils.http import content_disposition_header
from pydantic import ConfigDict, Field, ValidationError

from studio.comparisons import written
from studio.comparisons.models import Arm, Comparison
from studio.datasets.models import DatasetVersion
from studio.errors import UserError
from studio.runs.plainyaml import quoted, read_plain, scalar
from studio.runs.recipe import NamedFile, NamedVersion, base_of, commented, meaning, the_one, version_of
from studio.training.form import form_fields
from studio.training.registry import load_plugins
from studio.workspaces.models import Member, Project


class RecipeArm(written.WrittenArm):
    model_config = ConfigDict(extra="forbid")

    base_model: NamedFile | None = None
    """None takes that of the comparison."""
    dataset: NamedVersion | None = None


class Recipe(written.Written):
    """What the file says. Names are looked up in the workspace of the one who starts it."""

    model_config = ConfigDict(extra="forbid")

    client: str
    project: str
    base_model: NamedFile
    dataset: NamedVersion
    arms: list[RecipeArm] = Field(min_length=1, max_length=24)  # type: ignore[assignment]
    probe: NamedVersion | None = None
    """Of the same project; none takes the rows that the studio brings along."""
    prompts: list[str] = Field([], max_length=8)


def read_recipe(content: bytes) -> Recipe:
    """The recipe in a file. Raises UserError with what is wrong and where."""
    found = read_plain(content)
    if not isinstance(found, dict):
        raise UserError("This file is not a comparison's. One begins with name, client, project, and so on.", code="invalid_recipe")
    try:
        return Recipe.model_validate(found, strict=True)
    except ValidationError as error:
        raise UserError("This file cannot be used.", fields=faults(error), code="invalid_recipe") from error


def faults(error: ValidationError) -> dict[str, str]:
    """`{dataset.version: sentence}` of what pydantic refused."""
    found = {}
    for fault in error.errors(include_url=False):
        place = ".".join(str(part)[:60] for part in fault["loc"])
        if fault["type"] == "extra_forbidden":
            known = f"It has {', '.join(Recipe.model_fields)}." if "." not in place else "Leave it out."
            found[place] = f"There is no {quoted(place)} in a comparison's file. {known}"
        else:
            found[place] = "It is missing." if fault["type"] == "missing" else f"{fault['msg']}."
    return found


def start(member: Member, recipe: Recipe) -> Comparison:
    """The comparison that a recipe says, in the member's name; refused with a sentence beside each field, as the form is."""
    project = the_one(
        Project.objects.for_action(member, "comparison.edit")
        .filter(client__name=recipe.client, name=recipe.project)
        .select_related("client__workspace"),
        field="project",
        named=f"project {quoted(recipe.project)} of a client {quoted(recipe.client)}",
    )
    base, version = base_of(member, recipe.base_model), version_of(member, project, recipe.dataset)
    bases = [base_of(member, arm.base_model) if arm.base_model else base for arm in recipe.arms]
    versions = [version_of(member, project, arm.dataset) if arm.dataset else version for arm in recipe.arms]
    return written.begin(
        member,
        recipe,
        project=project,
        base=bases.__getitem__,
        version=versions.__getitem__,
        probe=version_of(member, project, recipe.probe) if recipe.probe else None,
        prompts=[prompt[:2000] for prompt in recipe.prompts if prompt.strip()],
    )


def recipe(request: HttpRequest, pk: str) -> HttpResponse:
    found = get_object_or_404(Comparison.objects.for_action(request, "comparison.view").select_related("project__client"), pk=pk)
    return recipe_response(found, recipe_of(found))


def recipe_response(comparison: Comparison, text: str) -> HttpResponse:
    headers = {
        "X-Content-Type-Options": "nosniff",
        "Content-Disposition": content_disposition_header(True, "comparison.yaml") or "attachment",
    }
    return HttpResponse(text, content_type="application/yaml; charset=utf-8", headers=headers)


def recipe_of(comparison: Comparison) -> str:
    """The file of a comparison. Of a sweep the first arm stands for all, which are drawn anew."""
    arms = list(comparison.arms.select_related("base_model", "dataset_version__dataset").order_by("number"))
    first, shown = arms[0], arms[:1] if comparison.sweep else arms
    lines = [
        "# A comparison of Adapter Studio. Start it again with: python3 manage.py compare comparison.yaml --follow",
        f"name: {scalar(comparison.name)}",
        f"client: {scalar(comparison.project.client.name)}",
        f"project: {scalar(comparison.project.name)}",
        *named_file("base_model", first),
        *named_version("dataset", first.dataset_version),
        *([] if comparison.sweep else [f"differs: {comparison.differs}"]),
        f"seeds: {scalar(comparison.seeds)}",
        f"stops_hopeless: {scalar(comparison.stops_hopeless)}",
        *([f"sweep: {scalar(comparison.sweep)}"] if comparison.sweep else []),
        *metrics_of(comparison),
        *probe_of(comparison),
        "arms:",
    ]
    for arm in shown:
        lines += arm_lines(arm, first)
    return "\n".join(lines) + "\n"


def metrics_of(comparison: Comparison) -> list[str]:
    told = [{name: value for name, value in metric.items() if value is not None} for metric in comparison.metrics]
    return ["metrics:", *(f"  - {scalar(metric)}" for metric in told)] if told else []


def probe_of(comparison: Comparison) -> list[str]:
    """Rows of the same project can be named; those of another one of the client cannot, and are left to whoever starts it again."""
    probe = comparison.probe
    same = probe is not None and probe.dataset.project_id == comparison.project_id
    return named_version("probe", probe) if same and probe is not None else []


def named_file(key: str, arm: Arm, *, indent: str = "") -> list[str]:
    base = arm.base_model
    return [f"{indent}{key}:", f"{indent}  name: {scalar(base.name)}", f"{indent}  sha256: {scalar(base.sha256)}"]


def named_version(key: str, version: DatasetVersion, *, indent: str = "") -> list[str]:
    return [
        f"{indent}{key}:",
        f"{indent}  name: {scalar(version.dataset.name)}",
        f"{indent}  version: {version.number}",
        f"{indent}  sha256: {scalar(version.sha256)}",
    ]


def arm_lines(arm: Arm, first: Arm) -> list[str]:
    loaded = load_plugins().get(arm.plugin)
    fields: dict[str, Any] = {field.name: field for field in form_fields(loaded.plugin.Config)} if loaded and loaded.plugin else {}
    return [
        f"  - name: {scalar(arm.name)}",
        commented(f"    plugin: {scalar(arm.plugin)}", loaded.title if loaded else ""),
        *(named_file("base_model", arm, indent="    ") if arm.base_model_id != first.base_model_id else []),
        *(named_version("dataset", arm.dataset_version, indent="    ") if arm.dataset_version_id != first.dataset_version_id else []),
        "    config:",
        *(commented(f"      {scalar(name)}: {scalar(value)}", meaning(fields.get(name))) for name, value in arm.config.items()),
    ]

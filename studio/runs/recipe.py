"""A run as a file of YAML that a person can read, keep and start again; and such a file, whoever wrote it, as what to start."""

from typing import Any

from pydantic import BaseModel as Schema
from pydantic import ConfigDict, Field, ValidationError

from studio.basemodels.models import BaseModel
from studio.datasets.models import DatasetVersion
from studio.errors import UserError
from studio.runs import services
from studio.runs.models import Run
from studio.runs.plainyaml import quoted, read_plain, scalar
from studio.training.form import FormField, form_fields
from studio.training.registry import load_plugins
from studio.workspaces.models import Member, Project

COMMENT_AT = 36
"""Column of a setting's comment."""


class Strict(Schema):
    model_config = ConfigDict(extra="forbid", strict=True)


class NamedFile(Strict):
    """A base model by its name, and by the hash of its files where more than one has that name."""

    name: str
    sha256: str = ""


class NamedVersion(Strict):
    name: str
    version: int = Field(ge=1, le=2**31 - 1)
    sha256: str = ""
    """Of the rows; a version with other rows is refused."""


class Recipe(Strict):
    """What the file says. Names are looked up in the workspace of the one who starts it."""

    name: str = ""
    client: str
    project: str
    base_model: NamedFile
    dataset: NamedVersion
    plugin: str
    settings: dict[str, Any] = {}
    prompts: list[str] = Field([], max_length=8)


def recipe_of(run: Run) -> str:
    """The file of a run."""
    version, base = run.dataset_version, run.base_model
    loaded = load_plugins().get(run.plugin)
    fields = {field.name: field for field in form_fields(loaded.plugin.Config)} if loaded and loaded.plugin else {}
    lines = [
        "# A run of Adapter Studio. Start it again with: python3 manage.py train run.yaml --follow",
        f"name: {scalar(run.name)}",
        f"client: {scalar(run.project.client.name)}",
        f"project: {scalar(run.project.name)}",
        "base_model:",
        f"  name: {scalar(base.name)}",
        f"  sha256: {scalar(base.sha256)}",
        "dataset:",
        f"  name: {scalar(version.dataset.name)}",
        f"  version: {version.number}",
        f"  sha256: {scalar(version.sha256)}",
        commented(f"plugin: {scalar(run.plugin)}", loaded.title if loaded else ""),
        "settings:",
        *(commented(f"  {scalar(name)}: {scalar(value)}", meaning(fields.get(name))) for name, value in run.config.items()),
        *(["prompts:", *(f"  - {scalar(prompt)}" for prompt in run.prompts)] if run.prompts else []),
    ]
    return "\n".join(lines) + "\n"


def meaning(field: FormField | None) -> str:
    """The unit of a setting, and its sentence."""
    return " ".join(part for part in (f"In {field.unit}." if field.unit else "", field.help) if part) if field else ""


def commented(line: str, comment: str) -> str:
    """The line with its comment, which must neither end the line nor hold what YAML forbids."""
    shown = "".join(sign if sign.isprintable() else " " for sign in comment).strip()
    return f"{line.ljust(COMMENT_AT)}  # {shown}" if shown else line


def read_recipe(content: bytes) -> Recipe:
    """The recipe in a file. Raises UserError with what is wrong and where."""
    found = read_plain(content)
    if not isinstance(found, dict):
        raise UserError("This file is not a run's. One begins with name, client, project, and so on.", code="invalid_recipe")
    try:
        return Recipe.model_validate(found)
    except ValidationError as error:
        raise UserError("This file cannot be used.", fields=faults(error), code="invalid_recipe") from error


def faults(error: ValidationError) -> dict[str, str]:
    """`{dataset.version: sentence}` of what pydantic refused."""
    known = [*Recipe.model_fields]
    found = {}
    for fault in error.errors(include_url=False):
        place = ".".join(str(part)[:60] for part in fault["loc"])
        if fault["type"] == "extra_forbidden":
            found[place] = (
                f"There is no {quoted(place)} in a run's file. It has {', '.join(known)}." if "." not in place else "Leave it out."
            )
        elif fault["type"] == "missing":
            found[place] = "It is missing."
        else:
            found[place] = f"{fault['msg']}."
    return found


def start(member: Member, recipe: Recipe) -> Run:
    """A queued run as the recipe says, in the member's name; refused with a sentence beside each field, as the form is."""
    project = the_one(
        Project.objects.for_action(member, "run.create").filter(client__name=recipe.client, name=recipe.project).select_related("client"),
        field="project",
        named=f"project {quoted(recipe.project)} of a client {quoted(recipe.client)}",
    )
    return services.create_run(
        member,
        project=project,
        name=recipe.name,
        plugin_name=recipe.plugin,
        config=recipe.settings,
        base=base_of(member, recipe.base_model),
        version=version_of(member, project, recipe.dataset),
        prompts=[prompt[:2000] for prompt in recipe.prompts if prompt.strip()],
    )


def base_of(member: Member, wanted: NamedFile) -> BaseModel:
    rows = BaseModel.objects.for_action(member, "run.create").filter(name=wanted.name)
    same = rows.filter(sha256=wanted.sha256) if wanted.sha256 else rows
    if wanted.sha256 and rows.exists() and not same.exists():
        raise UserError(
            "The base model is another one.", fields={"base_model": f"The files of {quoted(wanted.name)} here have another SHA-256."}
        )
    found: BaseModel = the_one(
        same.order_by("-created_at")[:1] if wanted.sha256 else same, field="base_model", named=f"base model {quoted(wanted.name)}"
    )
    return found


def version_of(member: Member, project: Project, wanted: NamedVersion) -> DatasetVersion:
    rows = DatasetVersion.objects.for_action(member, "run.create").select_related("dataset")
    rows = rows.filter(dataset__project=project, dataset__name=wanted.name, number=wanted.version)
    found: DatasetVersion = the_one(rows, field="dataset", named=f"version {wanted.version} of a dataset {quoted(wanted.name)}")
    if wanted.sha256 and found.sha256 != wanted.sha256:
        raise UserError("The dataset is another one.", fields={"dataset": f"The rows of {found} here have another SHA-256."})
    return found


def the_one(rows: Any, *, field: str, named: str) -> Any:
    """The only row. Raises UserError where there is none, or more than one."""
    found = list(rows[:2])
    if len(found) == 1:
        return found[0]
    raise UserError(
        "Something that the file names is not here." if not found else "Something that the file names is here more than once.",
        fields={
            field: f"There is no {named} here." if not found else f"There is more than one {named} here. Rename one, or give its sha256."
        },
    )

"""The pages of prompt sets: a list, one set with its prompts, and everything that changes one. What may be is `prompts`'s."""

import orjson
from django.contrib import messages
from django.core.paginator import Paginator
from django.db.models import Q
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.urls import reverse

from studio.datasets.models import Dataset, DatasetVersion
from studio.datasets.services import with_newest
from studio.errors import UserError
from studio.serving import prompt_files
from studio.serving import prompts as services
from studio.serving.json_lists import Length
from studio.serving.models import PromptSet
from studio.workspaces.lists import page_of, query_of
from studio.workspaces.models import Client, ScopedQuerySet
from studio.workspaces.searching import matching, words_of

SHOWN = 25
"""Prompts of a set on a page."""
OFFERED = 100
IN_USE = Q(client__isnull=True) | Q(client__archived_at__isnull=True)
"""Of the whole workspace, or of a client that is not archived."""


def sets(request: HttpRequest) -> HttpResponse:
    visible = PromptSet.objects.for_action(request, "prompts.view")
    chosen = chosen_client(request)
    typed = request.GET.get("q", "")
    rows = visible.filter(client=chosen) if chosen else visible.filter(IN_USE)
    rows = rows.filter(matching(PromptSet, words_of(typed), names=("name", "client__name"))).order_by("name", "-created_at", "pk")
    counted = rows.select_related("client", "user").defer("prompts").annotate(count=Length("prompts"))
    context = {
        "section": "prompts",
        "page": page_of(request, counted),
        "query": query_of(request),
        "clients": clients_of(request, "prompts.view"),
        "chosen": chosen,
        "typed": typed,
    }
    return render(request, "prompts/list.html", context)


def chosen_client(request: HttpRequest) -> Client | None:
    """Whose things alone a list is to show; also those of an archived client, which it leaves out otherwise."""
    found: Client | None = None
    if wanted := request.GET.get("client"):
        found = Client.objects.for_action(request, "prompts.view").named(wanted)
    return found


def clients_of(request: HttpRequest, action: str) -> ScopedQuerySet:
    found: ScopedQuerySet = Client.objects.for_action(request, action)
    return found.current().order_by("name")


def new(request: HttpRequest) -> HttpResponse:
    """From what was pasted, a file, or the held-out rows of a dataset."""
    clients, error = clients_of(request, "prompts.edit"), None
    wanted = request.POST.get("client", "") or request.GET.get("client", "")
    client = clients.named(wanted) if wanted else None
    if request.method == "POST":
        try:
            made = services.create_set(
                request.member,  # type: ignore[attr-defined]
                name=request.POST.get("name", ""),
                client=client,
                prompts=given(request, client),
            )
        except UserError as problem:
            error = problem
        else:
            messages.success(request, f"Made {made.name} with {len(made.prompts)} prompt{'s' if len(made.prompts) != 1 else ''}.")
            return redirect("prompts:detail", pk=made.pk)
    context = {
        "section": "prompts",
        "clients": clients,
        "client_id": str(client.pk) if client else "",
        "datasets": question_sources(request, client),
        "error": error,
        "typed": request.POST,
    }
    return render(request, "prompts/new.html", context, status=422 if error else 200)


def question_sources(request: HttpRequest, client: Client | None) -> list[tuple[Dataset, DatasetVersion]]:
    """The newest version of each dataset whose held-out rows have questions. A set of the whole workspace takes nobody's."""
    if client is None:
        return []
    found = Dataset.objects.for_action(request, "prompts.edit").filter(project__client=client).order_by("name")[:OFFERED]
    return [(dataset, version) for dataset, version in with_newest(found) if version and has_questions(version)]


def has_questions(version: DatasetVersion) -> bool:
    facts = version.facts or {}
    return facts.get("shape") == "chat" and facts.get("split", {}).get("validation", 0) > 0


def given(request: HttpRequest, client: Client | None) -> list[services.Prompt]:
    """The prompts that a form brings: a file before rows before what was pasted."""
    if (file := request.FILES.get("file")) is not None:
        return prompt_files.read(file.read(), filename=file.name or "").prompts
    if wanted := request.POST.get("version"):
        versions = DatasetVersion.objects.for_action(request, "prompts.edit").select_related("dataset__project")
        version = versions.named(wanted)
        if client is None or version.dataset.project.client_id != client.pk:
            raise UserError("These rows belong to a client.", fields={"version": "Choose that client for the set, then its dataset."})
        return services.held_out_questions(version)
    return prompt_files.read(request.POST.get("prompts", "").encode("utf-8", "replace")).prompts


def found_for(request: HttpRequest, action: str, pk: str) -> PromptSet:
    found: PromptSet = get_object_or_404(PromptSet.objects.for_action(request, action).select_related("client", "user"), pk=pk)
    return found


def detail(request: HttpRequest, pk: str) -> HttpResponse:
    return draw(request, found_for(request, "prompts.view", pk))


def draw(request: HttpRequest, found: PromptSet, *, error: UserError | None = None, editing: int | None = None) -> HttpResponse:
    """The page; with an error, as the form that was sent had it."""
    category = request.GET.get("category", "")
    numbered = [prompt | {"number": number} for number, prompt in enumerate(found.prompts, start=1)]
    categories = list(dict.fromkeys(prompt["category"] for prompt in numbered if prompt["category"]))
    shown = [prompt for prompt in numbered if category in ("", prompt["category"])]
    editing = editing or number_of(request.GET.get("edit"))
    place = next((at for at, prompt in enumerate(shown) if prompt["number"] == editing), None)
    page = Paginator(shown, SHOWN).get_page(place // SHOWN + 1 if place is not None else request.GET.get("page"))
    context = {
        "section": "prompts",
        "set": found,
        "page": page,
        "query": query_of(request),
        "categories": categories,
        "category": category,
        "editing": editing if place is not None else None,
        "turns": request.POST.getlist("turn") if error and editing else None,
        "error": error,
        "typed": request.POST,
        "most_turns": services.MOST_TURNS,
    }
    return render(request, "prompts/detail.html", context, status=422 if error else 200)


def number_of(typed: str | None) -> int | None:
    return int(typed) if typed and typed.isascii() and typed.isdecimal() and len(typed) < 6 else None


def edit(request: HttpRequest, pk: str) -> HttpResponse:
    """`do` is rename, save (one prompt), drop (one prompt) or add (more of them)."""
    found, member = found_for(request, "prompts.edit", pk), request.member  # type: ignore[attr-defined]
    do, number = request.POST.get("do", ""), number_of(request.POST.get("number")) or 0
    try:
        if do == "rename":
            services.change(member, found, name=request.POST.get("name", ""))
        elif do == "save":
            turns = [turn for turn in request.POST.getlist("turn") if turn.strip()]
            services.edit_prompt(member, found, number, turns=turns, category=request.POST.get("category", ""))
        elif do == "drop":
            services.drop_prompt(member, found, number)
        elif do == "add":
            services.add(member, found, given(request, found.client))
        else:
            raise UserError("Choose what to do with the set.")
    except UserError as problem:
        return draw(request, found, error=problem, editing=number if do == "save" else None)
    if do == "add":
        messages.success(request, f"{found.name} has {len(found.prompts)} prompts now.")
        return redirect(f"{reverse('prompts:detail', args=[found.pk])}?page={-(-len(found.prompts) // SHOWN)}")
    return redirect(f"{reverse('prompts:detail', args=[found.pk])}?page={-(-max(1, min(number, len(found.prompts))) // SHOWN)}")


def copy(request: HttpRequest, pk: str) -> HttpResponse:
    made = services.copy_set(request.member, found_for(request, "prompts.edit", pk))  # type: ignore[attr-defined]
    messages.success(request, f"Made {made.name}.")
    return redirect("prompts:detail", pk=made.pk)


def delete(request: HttpRequest, pk: str) -> HttpResponse:
    found = found_for(request, "prompts.edit", pk)
    services.delete_set(request.member, found)  # type: ignore[attr-defined]
    messages.success(request, f"Deleted {found.name}.")
    return redirect("prompts:list")


def download(request: HttpRequest, pk: str) -> HttpResponse:
    """JSON lines, as the upload takes them."""
    found = found_for(request, "prompts.view", pk)
    body = b"".join(orjson.dumps(prompt) + b"\n" for prompt in found.prompts)
    headers = {"Content-Disposition": "attachment; filename=prompts.jsonl", "X-Content-Type-Options": "nosniff"}
    return HttpResponse(body, content_type="application/jsonl", headers=headers)

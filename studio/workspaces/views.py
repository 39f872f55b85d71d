"""The first set-up, clients, projects and settings."""

from django.db import connection
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.views.decorators.cache import never_cache

from studio.errors import UserError
from studio.workspaces import services, throttle
from studio.workspaces.forms import SetupForm
from studio.workspaces.lists import page_of, query_of
from studio.workspaces.models import Client, Project
from studio.workspaces.requests import caller
from studio.workspaces.searching import matching, words_of
from studio.workspaces.signing_in import sign_in


def healthz(request: HttpRequest) -> HttpResponse:
    """200 while pages can be served: the database answers."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1")
    return HttpResponse("ok\n", content_type="text/plain")


@never_cache
def setup(request: HttpRequest, token: str) -> HttpResponse:
    """The first owner, through the link that the terminal printed."""
    address = caller(request)
    if throttle.is_blocked("setup", address) or not services.setup_token_holds(token):
        throttle.failed("setup", address)
        return render(request, "workspaces/setup_gone.html", {"is_set_up": services.is_set_up()}, status=404)
    form = SetupForm(request.POST or None)
    if request.method == "POST" and form.is_valid():
        try:
            member = services.set_up(**form.cleaned_data, token=token)
        except UserError as error:
            for field, sentence in (error.fields or {"email": error.message}).items():
                form.add_error(field, sentence)
        else:
            sign_in(request, member.user)
            return redirect("home")
    return render(request, "workspaces/setup.html", {"form": form}, status=422 if form.errors else 200)


def client_new(request: HttpRequest) -> HttpResponse:
    error = None
    if request.method == "POST":
        try:
            made = services.create_client(request.member, name=request.POST.get("name", ""))  # type: ignore[attr-defined]
        except UserError as problem:
            error = problem
        else:
            return redirect("clients:detail", pk=made.pk)
    context = {"section": "clients", "error": error, "name": request.POST.get("name", "")}
    return render(request, "workspaces/client_new.html", context, status=422 if error else 200)


def projects(request: HttpRequest) -> HttpResponse:
    rows = Project.objects.for_action(request, "project.view").current().select_related("client").order_by("client__name", "name")
    typed = request.GET.get("q", "")
    rows = rows.filter(matching(Project, words_of(typed), names=("name", "client__name")))
    context = {"section": "projects", "page": page_of(request, rows, per=100), "query": query_of(request), "typed": typed}
    return render(request, "workspaces/projects.html", context)


def project_new(request: HttpRequest) -> HttpResponse:
    rows = Client.objects.for_action(request, "client.view").filter(archived_at=None)
    error = None
    chosen = request.POST.get("client") or request.GET.get("client") or ""
    if request.method == "POST":
        try:
            made = services.create_project(request.member, client=rows.named(chosen), name=request.POST.get("name", ""))  # type: ignore[attr-defined]
        except UserError as problem:
            error = problem
        else:
            return redirect("projects:detail", pk=made.pk)
    context = {"section": "projects", "clients": rows, "chosen": chosen, "error": error, "name": request.POST.get("name", "")}
    return render(request, "workspaces/project_new.html", context, status=422 if error else 200)


def design(request: HttpRequest) -> HttpResponse:
    return render(request, "design/index.html", {"section": ""})

"""Base models: the list, the form that adds one, and one as it arrives."""

from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render

from studio.basemodels import services
from studio.basemodels.models import BaseModel
from studio.errors import UserError
from studio.orders.pages import render_live


def base_models(request: HttpRequest) -> HttpResponse:
    rows = BaseModel.objects.for_action(request, "base_model.view").select_related("order")
    sources = {model.source for model in rows if model.is_ready or model.order.is_live}
    offered = [(f"package:{package}", name) for package, name in services.PACKAGES.items() if f"package:{package}" not in sources]
    return render(request, "basemodels/list.html", {"section": "basemodels", "models": rows, "offered": offered})


def base_model(request: HttpRequest, pk: str) -> HttpResponse:
    model = get_object_or_404(BaseModel.objects.for_action(request, "base_model.view").select_related("order"), pk=pk)
    context = {"section": "basemodels", "model": model, "order": model.order}
    return render_live(request, "basemodels/detail.html", context, live=model.order.is_live)


def new(request: HttpRequest) -> HttpResponse:
    error = None
    if request.method == "POST":
        try:
            source = request.POST.get("source", "")
            model = services.register(request.member, source=source, name=request.POST.get("name", ""))  # type: ignore[attr-defined]
        except UserError as problem:
            error = problem
        else:
            return redirect("basemodels:detail", pk=model.pk)
    context = {"section": "basemodels", "error": error, "typed": request.POST}
    return render(request, "basemodels/new.html", context, status=422 if error else 200)


def new_tokens(request: HttpRequest, pk: str) -> HttpResponse:
    """Another base model: this one, and tokens that a person wrote line by line."""
    visible = BaseModel.objects.for_action(request, "base_model.create").select_related("order")
    model = get_object_or_404(visible, pk=pk)
    try:
        tokens = request.POST.get("tokens", "").splitlines()
        made = services.add_tokens(request.member, model, tokens=tokens, name=request.POST.get("name", ""))  # type: ignore[attr-defined]
    except UserError as problem:
        context = {"section": "basemodels", "model": model, "order": model.order, "error": problem, "typed": request.POST}
        return render(request, "basemodels/detail.html", context, status=422)
    return redirect("basemodels:detail", pk=made.pk)


def stop(request: HttpRequest, pk: str) -> HttpResponse:
    model = get_object_or_404(BaseModel.objects.for_action(request, "base_model.create").select_related("order"), pk=pk)
    services.stop(request.member, model)  # type: ignore[attr-defined]
    return redirect("basemodels:detail", pk=model.pk)

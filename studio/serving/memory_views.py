"""The page of what is in memory to answer with."""

from typing import Any

from asgiref.sync import async_to_sync
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render

from studio.serving import asking
from studio.serving.inmemory import Engine, engines_for
from studio.workspaces.templatetags.studio import filesize


def in_memory(request: HttpRequest) -> HttpResponse:
    told = async_to_sync(asking.state)()
    engines = engines_for(request, told) if told is not None else []
    context = {
        "section": "workers",
        "runs": told is not None,
        "engines": [{"engine": engine} | bar(engine) for engine in engines],
        "models": sum(len(engine.models) for engine in engines),
    }
    return render(request, "serving/memory.html", context)


def bar(engine: Engine) -> dict[str, Any]:
    """What each model takes of the memory that this engine may take."""
    shown = [(model.name, model.size) for model in engine.models if model.size]
    if engine.others:
        shown.append(("Others", engine.others))
    return {
        "parts": [{"name": name, "value": size, "text": filesize(size)} for name, size in shown],
        "total": f"{filesize(engine.used)} in memory",
        "limit_text": f"of {filesize(engine.budget)} that models may take" if engine.budget else "",
    }

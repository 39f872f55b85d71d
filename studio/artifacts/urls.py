from collections.abc import Callable

from django.http import HttpRequest
from django.http.response import HttpResponseBase
from django.urls import include, path

from studio.artifacts import views


def soon(name: str) -> Callable[..., HttpResponseBase]:
    def view(request: HttpRequest, pk: str) -> HttpResponseBase:
        found: HttpResponseBase = getattr(views, name)(request, pk)
        return found

    return view


artifacts = [
    path("", views.artifacts, name="list"),
    path("<uuid:pk>/", views.artifact, name="detail"),
    path("<uuid:pk>/download/", views.download, name="download"),
    path("<uuid:pk>/bundle/", soon("bundle"), name="bundle"),
]
builds = [
    path("of/<uuid:pk>/", views.build_new, name="new"),
    path("of/<uuid:pk>/ladder/", soon("ladder"), name="ladder"),
    path("base/<uuid:pk>/", soon("build_base"), name="base"),
    path("base/<uuid:pk>/ladder/", soon("base_ladder"), name="base_ladder"),
    path("<uuid:pk>/", views.build, name="detail"),
    path("<uuid:pk>/stop/", views.build_stop, name="stop"),
    path("<uuid:pk>/retry/", soon("build_retry"), name="retry"),
    path("<uuid:pk>/delete/", soon("build_delete"), name="delete"),
]
urlpatterns = [
    path("artifacts/", include((artifacts, "artifacts"))),
    path("builds/", include((builds, "builds"))),
]

from typing import Any

from django.urls import include, path

from studio.comparisons import views

comparisons: list[Any] = [
    path("", views.comparisons, name="list"),
    path("<uuid:pk>/stop/", views.stop, name="stop"),
    path("<uuid:pk>/again/", views.again, name="again"),
    path("<uuid:pk>/rename/", views.rename, name="rename"),
    path("<uuid:pk>/seeds/", views.seeds, name="seeds"),
    path("<uuid:pk>/delete/", views.delete, name="delete"),
]
urlpatterns = [path("comparisons/", include((comparisons, "comparisons")))]

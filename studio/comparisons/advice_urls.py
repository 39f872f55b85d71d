from typing import Any

from django.urls import include, path

from studio.comparisons import advice_views as views

advice: list[Any] = [
    path("", views.page, name="page"),
    path("panel/", views.panel, name="panel"),
    path("survey/", views.survey, name="survey"),
    path("surveys/<uuid:pk>/stop/", views.stop, name="survey_stop"),
]
urlpatterns = [path("advice/", include((advice, "advice")))]

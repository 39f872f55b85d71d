"""Every address of the pages. The policy table says who may open each."""

from django.urls import include, path

from studio.clients.pages import searching
from studio.workspaces import views

urlpatterns = [
    path("search/", searching.results, name="search"),
    path("healthz/", views.healthz, name="healthz"),
    path("", include("studio.workspaces.account_urls")),
    path("setup/<str:token>/", views.setup, name="setup"),
    path("", include("studio.runs.home_urls")),
    path("", include("studio.workspaces.urls")),
    path("clients/", include("studio.clients.urls")),
    path("", include("studio.clients.usage_urls")),
    path("base-models/", include("studio.basemodels.urls")),
    path("datasets/", include("studio.datasets.urls")),
    path("settings/connections/", include("studio.datasets.connection_urls")),
    path("uploads/", include("studio.datasets.upload_urls")),
    path("runs/", include("studio.runs.urls")),
    path("", include("studio.artifacts.urls")),
    path("", include("studio.releases.delivery_urls")),
    path("", include("studio.releases.shared_urls")),
    path("", include("studio.releases.urls")),
    path("playground/", include("studio.serving.urls")),
    path("", include("studio.serving.prompt_urls")),
    path("deployments/", include("studio.serving.deployment_urls")),
    path("answers/", include("studio.serving.answer_urls")),
    path("traffic/", include("studio.serving.traffic_urls")),
    path("", include("studio.comparisons.urls")),
    path("", include("studio.comparisons.advice_urls")),
    path("", include("studio.comparisons.extraction_urls")),
    path("", include("studio.comparisons.retraining_urls")),
    path("lineage/", include("studio.clients.lineage_urls")),
    path("", include("studio.serving.openai.urls")),
    path("", include("studio.api.urls")),
]

handler500 = "studio.api.errors.bug"

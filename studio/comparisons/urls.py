from typing import Any

from django.urls import include, path

from studio.comparisons import live_views, new_views, rating_views, report_views, views
from studio.comparisons.recipe import recipe

comparisons: list[Any] = [
    path("", views.comparisons, name="list"),
    path("new/", new_views.new, name="new"),
    path("new/outlook/", new_views.outlook, name="outlook"),
    path("<uuid:pk>/", live_views.detail, name="detail"),
    path("<uuid:pk>/curves/", live_views.curves, name="curves"),
    path("<uuid:pk>/comparison.yaml", recipe, name="recipe"),
    path("<uuid:pk>/report/", report_views.report, name="report"),
    path("<uuid:pk>/report.pdf", report_views.report_pdf, name="report_pdf"),
    path("<uuid:pk>/figures.csv", report_views.figures, name="figures"),
    path("<uuid:pk>/stop/", views.stop, name="stop"),
    path("<uuid:pk>/again/", views.again, name="again"),
    path("<uuid:pk>/rename/", views.rename, name="rename"),
    path("<uuid:pk>/seeds/", views.seeds, name="seeds"),
    path("<uuid:pk>/delete/", views.delete, name="delete"),
    path("<uuid:pk>/rate/", rating_views.rate, name="rate"),
    path("<uuid:pk>/share/", rating_views.share, name="share"),
    path("<uuid:pk>/ratings.csv", rating_views.download, name="ratings_csv"),
]
urlpatterns = [
    path("comparisons/", include((comparisons, "comparisons"))),
    path("shared/comparisons/<uuid:pk>/", rating_views.rate, name="shared_rate"),
]

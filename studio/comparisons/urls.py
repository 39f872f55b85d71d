from typing import Any

from django.urls import include, path

comparisons: list[Any] = []
urlpatterns = [path("comparisons/", include((comparisons, "comparisons")))]

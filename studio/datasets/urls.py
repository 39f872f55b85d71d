from django.urls import path

from studio.datasets import views

app_name = "datasets"
urlpatterns = [
    path("new/", views.new, name="new"),
    path("<uuid:pk>/", views.dataset, name="detail"),
    path("<uuid:pk>/versions/new/", views.version_new, name="version_new"),
    path("versions/<uuid:pk>/", views.version, name="version"),
    path("versions/<uuid:pk>/refusals/", views.refusals, name="refusals"),
    path("versions/<uuid:pk>/map/", views.map_columns, name="map"),
    path("versions/<uuid:pk>/stop/", views.stop, name="stop"),
]

from django.urls import path

from studio.datasets import views
from studio.datasets.pages import tokens, uploads

app_name = "datasets"
urlpatterns = [
    path("new/", views.new, name="new"),
    path("uploads/<uuid:pk>/", uploads.look, name="upload"),
    path("uploads/<uuid:pk>/preview/", uploads.preview, name="upload_preview"),
    path("uploads/<uuid:pk>/preview/", uploads.preview, name="upload_preview"),
    path("uploads/<uuid:pk>/discard/", uploads.discard, name="upload_discard"),
    path("<uuid:pk>/", views.dataset, name="detail"),
    path("<uuid:pk>/versions/new/", views.version_new, name="version_new"),
    path("versions/<uuid:pk>/", views.version, name="version"),
    path("versions/<uuid:pk>/refusals/", views.refusals, name="refusals"),
    path("versions/<uuid:pk>/map/", views.map_columns, name="map"),
    path("versions/<uuid:pk>/stop/", views.stop, name="stop"),
    path("versions/<uuid:pk>/tokens/", tokens.tokens, name="tokens"),
]

from django.urls import include, path

from studio.artifacts import views

artifacts = [
    path("", views.artifacts, name="list"),
    path("<uuid:pk>/", views.artifact, name="detail"),
    path("<uuid:pk>/download/", views.download, name="download"),
]
builds = [
    path("of/<uuid:pk>/", views.build_new, name="new"),
    path("<uuid:pk>/", views.build, name="detail"),
    path("<uuid:pk>/stop/", views.build_stop, name="stop"),
]
urlpatterns = [
    path("artifacts/", include((artifacts, "artifacts"))),
    path("builds/", include((builds, "builds"))),
]

from django.urls import include, path

from studio.artifacts import views

artifacts = [
    path("", views.artifacts, name="list"),
    path("<uuid:pk>/", views.artifact, name="detail"),
    path("<uuid:pk>/download/", views.download, name="download"),
    path("<uuid:pk>/bundle/", views.bundle, name="bundle"),
]
builds = [
    path("of/<uuid:pk>/", views.build_new, name="new"),
    path("of/<uuid:pk>/ladder/", views.ladder, name="ladder"),
    path("base/<uuid:pk>/", views.build_base, name="base"),
    path("base/<uuid:pk>/ladder/", views.base_ladder, name="base_ladder"),
    path("<uuid:pk>/", views.build, name="detail"),
    path("<uuid:pk>/stop/", views.build_stop, name="stop"),
    path("<uuid:pk>/retry/", views.build_retry, name="retry"),
    path("<uuid:pk>/delete/", views.build_delete, name="delete"),
]
urlpatterns = [
    path("artifacts/", include((artifacts, "artifacts"))),
    path("builds/", include((builds, "builds"))),
]

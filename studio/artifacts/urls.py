from django.urls import include, path

from studio.artifacts import upload_views, views

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
adapters = [
    path("new/", upload_views.new, name="new"),
    path("files/<uuid:pk>/", upload_views.look, name="look"),
    path("files/<uuid:pk>/discard/", upload_views.discard, name="discard"),
    path("<uuid:pk>/", upload_views.detail, name="detail"),
    path("<uuid:pk>/stop/", upload_views.stop, name="stop"),
]
urlpatterns = [
    path("artifacts/", include((artifacts, "artifacts"))),
    path("adapters/", include((adapters, "adapters"))),
    path("builds/", include((builds, "builds"))),
]

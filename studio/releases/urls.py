from django.urls import include, path

from studio.releases import views

releases = [
    path("", views.releases, name="list"),
    path("new/", views.new, name="new"),
    path("<uuid:pk>/", views.release, name="detail"),
    path("<uuid:pk>/stage/", views.stage, name="stage"),
    path("<uuid:pk>/approve/", views.approve, name="approve"),
    path("<uuid:pk>/evaluate/", views.evaluate, name="evaluate"),
    path("<uuid:pk>/evaluate/stop/", views.stop_evaluation, name="stop_evaluation"),
    path("<uuid:pk>/share/", views.share, name="share"),
    path("<uuid:pk>/edit/", views.edit, name="edit"),
]
urlpatterns = [path("releases/", include((releases, "releases")))]

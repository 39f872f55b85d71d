from django.urls import path

from studio.serving import deployment_views as views

app_name = "deployments"
urlpatterns = [
    path("", views.deployments, name="list"),
    path("new/", views.new, name="new"),
    path("<uuid:pk>/", views.detail, name="detail"),
    path("<uuid:pk>/promote/", views.promote, name="promote"),
    path("<uuid:pk>/canary/", views.canary, name="canary"),
    path("<uuid:pk>/rollback/", views.rollback, name="rollback"),
    path("<uuid:pk>/clear/", views.clear, name="clear"),
    path("<uuid:pk>/archive/", views.archive, name="archive"),
    path("<uuid:pk>/restore/", views.restore, name="restore"),
]

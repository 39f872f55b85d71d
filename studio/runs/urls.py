from django.urls import path

from studio.runs import queue_views, views
from studio.runs.exports import events, recipe

app_name = "runs"
urlpatterns = [
    path("", views.runs, name="list"),
    path("new/", views.new, name="new"),
    path("estimate/", views.estimate, name="estimate"),
    path("queue/", queue_views.page, name="queue"),
    path("queue/rules/", queue_views.rules, name="queue_rules"),
    path("<uuid:pk>/", views.detail, name="detail"),
    path("<uuid:pk>/steps/", views.steps, name="steps"),
    path("<uuid:pk>/log/", views.log, name="log"),
    path("<uuid:pk>/run.yaml", recipe, name="recipe"),
    path("<uuid:pk>/events.jsonl", events, name="events"),
    path("<uuid:pk>/stop/", views.stop, name="stop"),
    path("<uuid:pk>/pause/", views.pause, name="pause"),
    path("<uuid:pk>/resume/", views.resume, name="resume"),
    path("<uuid:pk>/move/", queue_views.move, name="move"),
    path("<uuid:pk>/when/", queue_views.when, name="when"),
    path("<uuid:pk>/discard/", queue_views.discard, name="discard"),
]

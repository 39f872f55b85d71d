from django.urls import path

from studio.serving import chat_views, memory_views, talk_views, views

app_name = "serving"
urlpatterns = [
    path("", views.playground, name="playground"),
    path("choices/", views.choices, name="choices"),
    path("column/", views.column, name="column"),
    path("chat/", chat_views.chat, name="chat"),
    path("memory/", memory_views.in_memory, name="state"),
    path("keep/", views.keep, name="keep"),
    path("talks/", talk_views.shared, name="talks"),
    path("talks/<uuid:pk>/", talk_views.talk, name="talk"),
    path("talks/<uuid:pk>/delete/", talk_views.delete, name="talk_delete"),
    path("votes/", talk_views.cast_or_tally, name="votes"),
    path("votes/export/", talk_views.export, name="votes_export"),
]

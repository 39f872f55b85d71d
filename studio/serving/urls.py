from django.urls import path

from studio.serving import views

app_name = "serving"
urlpatterns = [
    path("", views.playground, name="playground"),
    path("chat/", views.chat, name="chat"),
    path("keep/", views.keep, name="keep"),
]

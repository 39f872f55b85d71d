"""Addresses as OpenAI's clients put them together from a base URL that ends in /v1. The policy table says who may call what."""

from django.urls import path, re_path

from studio.serving.openai import views

app_name = "api_openai"
urlpatterns = [
    path("v1/chat/completions", views.chat_completions, name="chat_completions"),
    path("v1/completions", views.completions, name="completions"),
    path("v1/embeddings", views.embeddings, name="embeddings"),
    path("v1/models", views.models, name="models"),
    path("v1/models/<path:name>", views.model, name="model"),
    re_path(r"^v1(?:/.*)?$", views.nowhere, name="nowhere"),
]

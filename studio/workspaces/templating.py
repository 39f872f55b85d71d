"""Django's templates, which let go of a page's rows as soon as it is drawn."""

from typing import Any

from django.http import HttpRequest
from django.template import TemplateDoesNotExist
from django.template.backends import django as backend
from django.template.context import make_context


class Template(backend.Template):
    def render(self, context: dict[str, Any] | None = None, request: HttpRequest | None = None) -> str:
        values: Any = make_context(context, request, autoescape=self.backend.engine.autoescape)
        try:
            drawn = self.template.render(values)
        except TemplateDoesNotExist as error:
            backend.reraise(error, self.backend)
        # A context refers to itself by what it holds. Whatever a page has read would wait for a collection of garbage: every tenth
        # request or so would take as long as all of theirs.
        values.dicts.clear()
        return drawn


class DjangoTemplates(backend.DjangoTemplates):
    def from_string(self, template_code: str) -> Template:
        return Template(self.engine.from_string(template_code), self)

    def get_template(self, template_name: str) -> Template:
        return Template(super().get_template(template_name).template, self)

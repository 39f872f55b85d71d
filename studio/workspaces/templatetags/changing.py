"""Parts of a page that watches something: a refresh is answered with those alone that are not as the browser has them."""

import hashlib
from typing import Any

from django import template
from django.template.base import NodeList, Parser, Token
from django.utils.html import format_html

register = template.Library()
WHOLE = '<div class="changing" id="changing-{}"><input type="hidden" name="mark" value="{}">'
CHANGED = WHOLE.replace(">", ' hx-swap-oob="outerMorph">', 1)


class ChangingNode(template.Node):
    def __init__(self, name: str, inside: NodeList) -> None:
        self.name, self.nodelist = name, inside

    def render(self, context: Any) -> str:
        inside = self.nodelist.render(context)
        mark = f"{self.name}:{hashlib.blake2b(inside.encode(), digest_size=6).hexdigest()}"
        known = context["request"].GET.getlist("mark")
        if mark in known:
            return ""
        head = format_html(CHANGED if known else WHOLE, self.name, mark)
        return f"{head}{inside}</div>"


@register.tag
def changing(parser: Parser, token: Token) -> ChangingNode:
    """`{% changing matrix %}…{% endchanging %}`: a part that a refresh leaves out where the browser has it as it is.

    Something around it asks for the page again with `hx-include="[name=mark]"` and `hx-swap="none"`. What has changed is morphed, so it
    keeps its focus and stays where it was scrolled to. It holds no form with a token, which would differ each time.
    """
    _, name = token.split_contents()
    inside = parser.parse(("endchanging",))
    parser.delete_first_token()
    return ChangingNode(name, inside)

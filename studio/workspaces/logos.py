"""Clients' logos: a picture from outside is decoded, made small and encoded anew, so that nothing of the file itself is kept or shown."""

import base64
import io
from typing import Any

from django.db import transaction
from PIL import Image, ImageOps

from studio.audit.services import record
from studio.errors import UserError
from studio.workspaces.models import Client, Logo, Member, hold

LARGEST_FILE, LARGEST_KEPT = 5 << 20, 200_000
"""Bytes: of what is sent, and of what is kept."""
MOST_PIXELS = 25_000_000
"""Of what is sent; in memory each takes four bytes."""
TOO_MANY = "The picture has more than 25 million pixels. Save it smaller."
WIDEST, HIGHEST = 1024, 256
"""Pixels that are kept."""
FORMATS = ("PNG", "JPEG")
"""No SVG: it is a program for a browser."""


def set_logo(member: Member, client: Client, file: Any) -> Logo:
    """`file` is what a form sent, or None. Raises UserError for what is no picture that can be shown."""
    image, (width, height) = small_png(file)
    with transaction.atomic():
        hold(client)
        made: Logo
        made, _ = Logo.objects.update_or_create(
            client=client, defaults={"image": base64.b64encode(image).decode(), "width": width, "height": height}
        )
        record(member, "client.logo", client, change={"logo": [None, f"{width} × {height} pixels, {len(image):,} bytes"]})
    return made


def remove_logo(member: Member, client: Client) -> None:
    with transaction.atomic():
        hold(client)
        if Logo.objects.filter(client=client).delete()[0]:
            record(member, "client.logo", client, change={"logo": ["A picture", None]})


def small_png(file: Any) -> tuple[bytes, tuple[int, int]]:
    """The picture as a small PNG, with its width and height."""
    if not file or not file.size:
        raise refusal("Choose a PNG or JPEG file.")
    if file.size > LARGEST_FILE:
        raise refusal("The file is larger than 5 MB. Save the picture smaller.")
    try:
        with Image.open(file, formats=FORMATS) as sent:
            if sent.width * sent.height > MOST_PIXELS:  # its head says so, before anything is unpacked
                raise refusal(TOO_MANY)
            picture = ImageOps.exif_transpose(sent).convert("RGBA")
    except Image.DecompressionBombError as problem:
        raise refusal(TOO_MANY) from problem
    except (OSError, ValueError, SyntaxError, EOFError) as problem:
        raise refusal("This is no PNG or JPEG that can be read. Save the picture anew and choose that.") from problem
    width, height = WIDEST, HIGHEST
    while True:
        smaller = picture.copy()
        smaller.thumbnail((width, height), Image.Resampling.LANCZOS)
        kept = io.BytesIO()
        smaller.save(kept, "PNG", optimize=True)
        if kept.tell() <= LARGEST_KEPT:
            return kept.getvalue(), smaller.size
        width, height = width * 3 // 4, height * 3 // 4


def refusal(words: str) -> UserError:
    return UserError("The logo cannot be used.", fields={"file": words})

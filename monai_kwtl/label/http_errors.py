"""Errors of the user's as answers over HTTP: a 4xx status and a sentence. Needs monailabel's FastAPI."""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Iterator

from fastapi import HTTPException

from monai_kwtl.errors import KWTLError

__all__ = ["answered", "harmless_name", "refuse"]

logger = logging.getLogger("monai_kwtl")


def refuse(status: int, sentence: str) -> HTTPException:
    """Return the exception that FastAPI answers with a status and ``{"detail": sentence}``."""
    logger.warning(f"answered {status}: {sentence}")
    return HTTPException(status, sentence)


@contextlib.contextmanager
def answered(status: int = 400) -> Iterator[None]:
    """Answer a :class:`KWTLError` of the body with a status and its sentence."""
    try:
        yield
    except KWTLError as error:
        raise refuse(status, str(error)) from error


def harmless_name(name: str, what: str) -> str:
    """Return an id or a tag that is to become part of a path.

    Args:
        name: as it came from outside.
        what: it is, for the sentence.

    Raises:
        HTTPException: status 400, for what is empty, climbs out of its folder, is hidden, or has a control character.
    """
    name = str(name)
    if not name.strip() or name.startswith(".") or re.search(r"[/\\:\x00-\x1f\x7f]", name) or len(name) > 200:
        raise refuse(
            400, f"{name[:60]!r} cannot be {what}: use a plain name, without slashes and not beginning with a dot."
        )
    return name

"""Access to the label server and limits on requests: in front of everything else, for every call."""

from __future__ import annotations

import hmac
import ipaddress
import json
import logging
import urllib.parse
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from starlette.exceptions import HTTPException

__all__ = ["Gate"]

logger = logging.getLogger("monai_kwtl")

Scope = MutableMapping[str, Any]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]

LOCAL_NAMES = ("127.0.0.1", "localhost", "[::1]", "testserver")
MIB = 1 << 20
LARGEST_MESSAGE = MIB  # of a request that is no upload: options and outlines' parameters take a few KiB
READING = ("GET", "HEAD", "OPTIONS")


class Gate:
    """ASGI middleware that refuses whom the server is not for.

    - Without a token only this machine is answered, under a name of this machine, so that no name that another site has
      made lead here is; with one, whoever sends it as ``Authorization: Bearer TOKEN``.
    - A web page of another origin is refused whatever it asks for: browsers tell by ``Origin`` and ``Sec-Fetch-Site``.
      Links to the server still open.
    - What is sent has a size limit, of files and of all else.

    Args:
        app: that is behind it.
        token: None or empty answers this machine only.
        upload_mib: the most of an upload, in MiB.
    """

    def __init__(self, app: Callable[..., Awaitable[None]], token: str | None = None, upload_mib: int = 1024) -> None:
        self.app, self.token, self.upload_mib = app, token, upload_mib

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a refusal, or pass the call on."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        refusal = (400, "only HTTP is spoken here.") if scope["type"] != "http" else self._refusal(scope, headers)
        if refusal is None:
            limit, what = self._limit(headers)
            refusal = _too_long(headers.get("content-length"), limit, what)
        if refusal is None:
            await self.app(scope, _counted(receive, limit, what), send)
        elif scope["type"] == "http":
            await _answer(send, *refusal)

    def _refusal(self, scope: Scope, headers: MutableMapping[str, str]) -> tuple[int, str] | None:
        if self.token:
            given = headers.get("authorization", "").encode("latin-1")
            if not hmac.compare_digest(given, f"Bearer {self.token}".encode()):
                return 401, "this server wants its token, as a header: 'Authorization: Bearer TOKEN' (kwtl: --token)."
        else:
            if not _is_local(scope.get("client")):
                return 403, "this server answers its own machine only: start it with --host and a --token for others."
            if _host_name(headers.get("host", "")) not in LOCAL_NAMES:
                return 400, "Invalid host header: use the address that the server printed when it started."
        site = headers.get("sec-fetch-site", "none")
        origin = headers.get("origin")
        foreign = site in ("cross-site", "same-site") or (
            origin is not None and urllib.parse.urlsplit(origin).netloc.lower() != headers.get("host", "").lower()
        )
        link = scope["method"] == "GET" and headers.get("sec-fetch-mode") == "navigate" and origin is None
        if foreign and not link:
            return 403, "this call comes from the page of another web site, which this server does not serve."
        return None

    def _limit(self, headers: MutableMapping[str, str]) -> tuple[int, str]:
        if headers.get("content-type", "").lower().startswith("multipart/form-data"):
            return self.upload_mib * MIB, f"an upload may have {self.upload_mib} MiB (kwtl label start --upload-mib)"
        return LARGEST_MESSAGE, "a request without a file may have 1 MiB"


def _is_local(client: Any) -> bool:
    if client is None or client[0] == "testclient":  # a socket of the file system; a test
        return True
    try:
        address = ipaddress.ip_address(client[0])
    except ValueError:
        return False
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback


def _host_name(host: str) -> str:
    name = host.lower()
    return name[: name.index("]") + 1] if name.startswith("[") and "]" in name else name.partition(":")[0]


def _too_long(length: str | None, limit: int, what: str) -> tuple[int, str] | None:
    if length is None:
        return None
    if not length.isascii() or not length.isdecimal():
        return 400, "the header Content-Length is no number."
    return (413, f"this is too large: {what}.") if len(length) > 18 or int(length) > limit else None


def _counted(receive: Receive, limit: int, what: str) -> Receive:
    """Count what comes, for requests that do not say beforehand how much it will be."""
    come = 0

    async def counted() -> MutableMapping[str, Any]:
        nonlocal come
        message = await receive()
        come += len(message.get("body", b""))
        if come > limit:
            raise HTTPException(413, f"this is too large: {what}.")
        return message

    return counted


async def _answer(send: Send, status: int, sentence: str) -> None:
    logger.warning(f"answered {status}: {sentence}")
    body = json.dumps({"detail": sentence}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    # what is still coming of the request is not waited for
    headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})

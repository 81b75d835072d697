"""Start the server of a label app; it runs as MONAI Label's own program."""

from __future__ import annotations

import importlib.util
import ipaddress
import os
import re
import secrets
import socket
import sys
from pathlib import Path

from monai_kwtl.errors import KWTLError

__all__ = [
    "access_line",
    "enter_label_environment",
    "is_loopback",
    "server_command",
    "server_environment",
    "server_token",
]

ENVIRONMENT = Path(
    ".venv-label", "Scripts" if os.name == "nt" else "bin", "python.exe" if os.name == "nt" else "python"
)


def enter_label_environment(arguments: list[str]) -> None:
    """Go on in the environment that ``scripts/label_setup.sh`` made, where this one has no MONAI Label.

    Args:
        arguments: of ``kwtl``.

    Raises:
        KWTLError: when there is none.
    """
    if importlib.util.find_spec("monailabel") is not None:
        return
    for root in (Path.cwd(), Path(__file__).resolve().parents[3]):
        python = root / ENVIRONMENT
        if python.exists() and os.environ.get("KWTL_LABEL_ENVIRONMENT") != str(python):
            os.environ["KWTL_LABEL_ENVIRONMENT"] = str(python)  # so that a broken one does not start itself again
            sys.stdout.flush()
            command = "from monai_kwtl.cli.main import main; raise SystemExit(main())"
            os.execv(python, [str(python), "-c", command, *arguments])
    raise KWTLError(
        "MONAI Label is not installed here: run scripts/label_setup.sh, then .venv-label/bin/kwtl label ..."
    )


def is_loopback(host: str) -> bool:
    """Return True if an address can be reached from this machine only."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def server_token(host: str, token: str | None) -> str | None:
    """Return the token that clients must send: as given, or made for an address that other machines reach.

    Args:
        host: address that the server listens on.
        token: of the user; None where there is none.

    Returns:
        None where none is needed: only this machine reaches the address.

    Raises:
        KWTLError: for a token that a header cannot hold, or that is short enough to be guessed.
    """
    if token:
        if not re.fullmatch(r"[!-~]{16,200}", token):
            raise KWTLError("a token must be 16 to 200 letters, digits and signs, without spaces; none makes one.")
        return token
    return None if is_loopback(host) else secrets.token_urlsafe(24)


def access_line(host: str, token: str | None) -> str:
    """Say in a line what a server at this address allows, and to whom."""
    may = "read all images and labels here, change and delete them, and start trainings"
    who = "every user and program of this machine" if is_loopback(host) else "whoever reaches this address"
    if not token:
        return f"{who} may {may}; other machines and web sites may not"
    return f"{who} and sends the token may {may}; what is sent is not encrypted"


def server_environment(token: str | None = None, upload_mib: int = 1024) -> dict[str, str]:
    """Return the environment variables that the server needs; what the user has set stays.

    Args:
        token: that clients must send; None: none.
        upload_mib: the most of an upload, in MiB.
    """
    ours = {
        # one subprocess a scoring method at every call, otherwise; the train task scores by itself
        "MONAI_LABEL_AUTO_UPDATE_SCORING": "false",
        "MONAI_LABEL_SESSIONS": "false",
        "MPLBACKEND": "Agg",
    }
    return {**ours, **os.environ, "KWTL_LABEL_TOKEN": token or "", "KWTL_LABEL_UPLOAD_MIB": str(upload_mib)}


def server_command(app_dir: Path, studies: Path, host: str, port: int) -> list[str]:
    """Return the command line of the server.

    Raises:
        KWTLError: when the port is taken, or the address is not this machine's.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise KWTLError(f"cannot listen on {host}:{port} ({reason}): choose another --port or --host.") from error
    server = [sys.executable, "-m", "monailabel.main", "start_server", "--app", str(app_dir), "--studies", str(studies)]
    return [*server, "--host", host, "--port", str(port), "--uvicorn_app", "monai_kwtl.label.server:app"]

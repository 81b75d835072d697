"""``kwtl label``: a MONAI Label server that asks for the right region next, and what a client of it needs."""

from __future__ import annotations

import argparse
import contextlib
import getpass
import itertools
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from monai_kwtl.bundle.paths import find_bundle, stage_paths
from monai_kwtl.errors import KWTLError
from monai_kwtl.utils.checks import print_checks
from monai_kwtl.utils.text import format_table

if TYPE_CHECKING:
    from monai_kwtl.label.client.client import LabelServer

SERVER = "http://127.0.0.1:8000"
TOKEN_HELP = "of the server, where it has one; default: KWTL_LABEL_TOKEN"


def _client() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a user without a name, as in containers
        return "anonymous"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the sub-commands and their arguments."""
    actions = parser.add_subparsers(dest="action", metavar="action", required=True)

    start = actions.add_parser("start", help="start the server")
    start.add_argument("--studies", required=True, help="folder of the images, flat or with images/ below it")
    start.add_argument("--model", default=None, help="weights to begin with; default: the bundle's own")
    start.add_argument("--app", default=None, help="folder of the app; default: output/<name of the images>/label")
    start.add_argument("--pretext", default="auto", help="auto, always, skip or the path of weights, as in select.json")
    start.add_argument("--host", default="127.0.0.1", help="address to listen on")
    start.add_argument("--port", type=int, default=8000)
    start.add_argument(
        "--token",
        default=None,
        help="what clients must send; default: KWTL_LABEL_TOKEN, or one made for a --host that other machines reach",
    )
    start.add_argument("--upload-mib", type=int, default=1024, help="the most of an upload, in MiB")
    start.add_argument("--bundle", default=None, help="folder of the bundle; default: that of this installation")
    start.add_argument("--prepare-only", action="store_true", help="make the app and its weights, start no server")

    following = actions.add_parser("next", help="say what to label now, with a picture of each region")
    following.add_argument("-n", type=int, default=1, help="how many regions")
    following.add_argument("--strategy", default="kwtl", help="kwtl, random, entropy or mc_dropout")
    following.add_argument(
        "--output", default=None, help="folder for the pictures; default: output/label_next/<number>"
    )

    put = actions.add_parser("put", help="send the labels of regions that 'next' gave")
    put.add_argument("selection", help="folder that 'next' wrote")
    put.add_argument("labels", help="folder of masks (named like the pictures, or like the images) or of outlines")

    put.add_argument(
        "--confirm", nargs="+", default=[], metavar="WHAT", help="masks that are empty, full or picture are right"
    )

    for action in (following, put):
        action.add_argument("--server", default=SERVER, help="address of the server")
        action.add_argument("--client", default=_client(), help="who labels")
        action.add_argument("--token", default=None, help=TOKEN_HELP)

    doctor = actions.add_parser("doctor", help="say what is wrong with an install, and the fix")
    doctor.add_argument("--studies", default=None, help="folder of images to look at as well")
    doctor.add_argument("--app", default=None, help="folder of an app to look at as well")
    doctor.add_argument("--server", default=None, help="address of a server to look at as well")
    doctor.add_argument("--token", default=None, help=TOKEN_HELP)


def _start(options: argparse.Namespace) -> int:
    from monai_kwtl.label.client.launch import (
        access_line,
        enter_label_environment,
        server_command,
        server_environment,
        server_token,
    )

    if options.upload_mib < 1:
        raise KWTLError(f"--upload-mib must be a whole number of MiB, at least 1, got {options.upload_mib}.")
    given = options.token or os.environ.get("KWTL_LABEL_TOKEN")
    token = server_token(options.host, given)
    if not options.prepare_only:
        enter_label_environment(sys.argv[1:])
    from monai_kwtl.label.client.app_folder import make_app, make_weights
    from monai_kwtl.label.state.studies import Studies

    studies = Studies(options.studies)
    items = studies.items()
    bundle = find_bundle(options.bundle)
    app_dir = make_app(options.app or stage_paths(options.studies, None, "label").output, bundle)
    weights = make_weights(app_dir, options.studies, items, bundle, options.model, options.pretext)
    print(f"images:  {len(items)} in {studies.image_dir}\napp:     {app_dir}\nweights: {weights}", flush=True)
    if options.prepare_only:
        return 0
    command = server_command(app_dir.resolve(), studies.folder.resolve(), options.host, options.port)
    environment = server_environment(token, options.upload_mib)
    print(f"server:  http://{options.host}:{options.port} (Ctrl-C ends it)")
    print(f"access:  {access_line(options.host, token)}")
    if token and not given:
        print(f"token:   {token}")
    sys.stdout.flush()
    if os.name == "nt":
        return subprocess.call(command, env=environment)
    os.execve(command[0], command, environment)  # so that signals reach the server itself


def _server(options: argparse.Namespace, timeout: float = 3600.0) -> LabelServer:
    from monai_kwtl.label.client.client import LabelServer

    return LabelServer(options.server, timeout, options.token or os.environ.get("KWTL_LABEL_TOKEN"))


def _new_folder() -> Path:
    root = Path("output", "label_next")
    return next(path for n in itertools.count(1) if not (path := root / f"{n:03d}").exists())


def _next(options: argparse.Namespace) -> int:
    from monai_kwtl.label.client.client import next_regions
    from monai_kwtl.project.selection_folder import check_output

    folder = Path(options.output) if options.output else _new_folder()
    check_output(folder)
    try:
        regions, answer = next_regions(_server(options), options.n, options.strategy, options.client, folder)
    except KWTLError:
        with contextlib.suppress(OSError):
            folder.rmdir()  # nothing came; where the folder holds anything it stays
        raise
    rows = [(r.rank, r.image, "" if r.page is None else r.page + 1, r.x, r.y, r.width, r.height) for r in regions]
    print("\n".join(format_table(("rank", "image", "page", "x", "y", "width", "height"), rows)))
    notes = {
        "fresh": "by the weights in use",
        "stale": "by former weights: the scores of those in use are not there yet",
        "missing": f"{answer['unscored']} images have no scores yet and were passed over",
    }
    print(f"\nranking: {answer['status']} ({notes[answer['status']] if options.strategy != 'random' else 'at random'})")
    if len(regions) < options.n:
        print(f"only {len(regions)} regions are left to give out")
    print(f"pictures: {folder / 'what_to_label.png'}, {folder / 'regions'}")
    return 0


def _put(options: argparse.Namespace) -> int:
    from monai_kwtl.label.client.client import put_labels

    sent, missing = put_labels(
        _server(options), Path(options.selection), Path(options.labels), options.client, options.confirm
    )
    print(f"sent {sent} regions")
    if missing:
        print(f"{len(missing)} have no mask yet: {', '.join(missing[:5])}{' ...' if len(missing) > 5 else ''}")
    return 0


def _doctor(options: argparse.Namespace) -> int:
    from monai_kwtl.label.client.doctor import checks
    from monai_kwtl.label.client.launch import enter_label_environment

    try:
        enter_label_environment(sys.argv[1:])
    except KWTLError as error:
        return print_checks([("WRONG", "MONAI Label", str(error))])
    return print_checks(checks(options.studies, options.app, _server(options, 10) if options.server else None))


def run(options: argparse.Namespace) -> int:
    """Run a sub-command."""
    return {"start": _start, "next": _next, "put": _put, "doctor": _doctor}[options.action](options)

"""MONAI Label's calls as KWTL offers them: a closed list, checked, off the event loop, with sentences for refusals.

MONAI Label's own application does its work inside the event loop, answers what a client did wrong with a bare 500,
passes requests on unchecked, and lets every web page in. So its endpoints are taken one by one into an application of
ours. Needs monailabel.
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import json
import logging
import os
import shutil
import tempfile
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import monailabel.app
import torch
from fastapi import FastAPI, Request
from fastapi.background import BackgroundTasks
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse
from fastapi.routing import APIRoute
from monailabel.config import settings
from monailabel.endpoints import (
    activelearning,
    batch_infer,
    datastore,
    infer,
    info,
    login,
    logs,
    model,
    scoring,
    train,
    wsi_infer,
)
from monailabel.interfaces.exception import MONAILabelError, MONAILabelException
from monailabel.interfaces.utils.app import app_instance
from monailabel.utils.others.generic import remove_file
from pydantic import ValidationError
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException

from monai_kwtl.bundle.foreign import check_data, training_options
from monai_kwtl.errors import KWTLError, as_bool
from monai_kwtl.label.gate import Gate
from monai_kwtl.label.http_errors import harmless_name, refuse
from monai_kwtl.label.uploads import TidyUp, remove_after_call, temporary_folder

__all__ = ["TOKEN", "UPLOAD_MIB", "app"]

# environment variables, so that no other user of the machine sees a token in the list of processes
TOKEN = "KWTL_LABEL_TOKEN"
UPLOAD_MIB = "KWTL_LABEL_UPLOAD_MIB"

logger = logging.getLogger("monai_kwtl")

Values = dict[str, Any]

# --- what a call may say ----------------------------------------------------------------------------------------------

# of params, by call; other names are for other apps, and go no further
_BATCH = ("max_workers", "max_batch_size", "label_tag", "threshold", "result_extension", "polygons")
_INFER = ("image", "page", "result_extension", "threshold", "location", "size", "polygons", "save_label", "label_tag")
_NEXT = ("client_id", "n", "image", "page", "patch_size", "mode", "seed")
_EPISTEMIC = ("max_samples", "simulation_size")


def _parsed(text: str, what: str) -> dict[str, Any]:
    try:
        found = json.loads(text or "{}")
    except RecursionError as error:
        raise KWTLError(f"{what} is nested too deeply.") from error
    except ValueError as error:
        raise KWTLError(f"{what} is no JSON: {str(error).splitlines()[0][:100]}.") from error
    if not isinstance(found, dict):
        raise KWTLError(f"{what} must be a JSON object, such as {{}}.")
    return _data(found, what)


def _data(given: dict[str, Any], what: str) -> dict[str, Any]:
    check_data(dict.fromkeys(given), what)
    for name, value in given.items():
        check_data(value, name[:40])
    return given


def _only(given: Mapping[str, Any] | None, names: tuple[str, ...]) -> dict[str, Any]:
    return {name: value for name, value in (given or {}).items() if name in names and value is not None}


def _train(values: Values) -> None:
    values["params"] = training_options(values["params"] or {})


def _score(values: Values) -> None:
    values["params"] = _only(values["params"], _EPISTEMIC)
    for name, value in values["params"].items():
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 10**6:
            raise KWTLError(f"{name} must be a whole number from 0 to 999999.")


def _next(values: Values) -> None:
    values["params"] = _only(values["params"], _NEXT)


def _saving(params: dict[str, Any]) -> dict[str, Any]:
    if "save_label" in params:
        params["save_label"] = as_bool(params["save_label"], "save_label")
    if "label_tag" in params:
        params["label_tag"] = harmless_name(params["label_tag"], "the tag of a label")
    return params


def _segment_many(values: Values) -> None:
    params = _saving(_only(values["params"], _BATCH))
    for name in ("max_workers", "max_batch_size"):
        value = params.setdefault(name, 1 if name == "max_workers" else 0)
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 10**6:
            raise KWTLError(f"{name} must be a whole number from 0 to 999999.")
    # without a GPU its default, all GPUs, divides by their number
    values["params"] = params | {"multi_gpu": torch.cuda.device_count() > 0, "save_label": True}


def _segment(values: Values) -> None:
    if values.get("session_id"):
        raise refuse(400, "sessions are not offered: send the image as 'file', or name one of the studies.")
    if not values.get("file") and not values.get("image"):
        raise refuse(400, "there is no image: name one of the studies (?image=ID), or send one as 'file'.")
    if values.get("output") in ("dicom_seg", "dsa"):
        raise refuse(400, f"the output {values['output'].value} is not offered; use image, json, all or asap.")
    if values.get("label"):
        raise refuse(400, "a label is not looked at here: send it with PUT /datastore/label.")
    if "params" in values:
        values["params"] = json.dumps(_saving(_only(_parsed(values["params"], "params"), _INFER)))
    wsi = values.get("wsi")
    if isinstance(wsi, str):
        given = _parsed(wsi, "wsi")
        params = given.pop("params", None) or {}
        if not isinstance(params, dict):
            raise KWTLError("params of wsi must be an object.")
        values["wsi"] = json.dumps(given | {"params": _saving(_only(params, _INFER))})
    elif wsi is not None:
        values["wsi"] = wsi.model_copy(update={"params": _saving(_only(_data(wsi.params or {}, "params"), _INFER))})


def _new_image(values: Values) -> None:
    if values["image"]:
        check_data(values["image"], "the id of an image")
    _note("params")(values)


def _note(name: str) -> Callable[[Values], None]:
    def check(values: Values) -> None:
        values[name] = json.dumps(_parsed(values[name], name))

    return check


def _label(values: Values) -> None:
    values["tag"] = harmless_name(check_data(values["tag"], "the tag of a label"), "the tag of a label")
    _note("params")(values)


def _check_sum(values: Values) -> None:
    algorithm = (values.get("check_sum") or "SHA256").partition(":")
    if algorithm[1] and algorithm[0] not in ("SHA256", "SHA512", "MD5"):
        raise refuse(400, "check_sum must begin with SHA256:, SHA512: or MD5:.")


def _log(values: Values) -> None:
    for name, most in (("lines", 100_000), ("refresh", 86_400)):
        values[name] = min(max(values[name] or 0, 0), most)


def _gpu(values: Values) -> None:
    if shutil.which("nvidia-smi") is None:
        raise refuse(404, "there is no nvidia-smi on this machine, so that nothing is known of a GPU.")


def _refused(sentence: str) -> Callable[[Values], None]:
    def check(values: Values) -> None:
        raise refuse(403, sentence)

    return check


CHECKS: dict[tuple[str, str], Callable[[Values], None]] = {
    ("POST", "/train/"): _train,
    ("POST", "/train/{model}"): _train,
    ("POST", "/scoring/"): _score,
    ("POST", "/scoring/{method}"): _score,
    ("POST", "/activelearning/{strategy}"): _next,
    ("POST", "/batch/infer/{model}"): _segment_many,
    ("POST", "/infer/{model}"): _segment,
    ("POST", "/infer/wsi/{model}"): _segment,
    ("POST", "/infer/wsi_v2/{model}"): _segment,
    ("PUT", "/datastore/"): _new_image,
    ("PUT", "/datastore/image"): _new_image,
    ("PUT", "/datastore/label"): _label,
    ("PUT", "/datastore/image/info"): _note("info"),
    ("PUT", "/datastore/label/info"): _note("info"),
    ("PUT", "/datastore/updatelabelinfo"): _note("params"),
    ("HEAD", "/datastore/image"): _check_sum,
    ("GET", "/logs/"): _log,
    ("GET", "/logs/gpu"): _gpu,
    ("PUT", "/model/{model}"): _refused("weights cannot be uploaded: start the server with --model, or train."),
    ("DELETE", "/model/{model}"): _refused("weights cannot be removed: the server would be without any."),
}

# calls that compute for long wait for one another, not for the short ones
_SEGMENTING = ThreadPoolExecutor(1, "kwtl-segment")
_COMPUTING = ThreadPoolExecutor(1, "kwtl-compute")
_SHORT = ThreadPoolExecutor(16, "kwtl")
_POOLS = {"infer": _SEGMENTING, "wsi_infer": _SEGMENTING, "scoring": _COMPUTING, "train": _COMPUTING}
_POOLS |= {"batch_infer": _COMPUTING}
_beginning = threading.Lock()


def _pool(module: str, values: Values) -> ThreadPoolExecutor:
    pool = _POOLS.get(module, _SHORT)
    # what runs in the background is only queued here, and what asks after it or stops it must not wait for it
    return _SHORT if pool is _COMPUTING and not values.get("run_sync") else pool


def _upload_names(values: Values) -> None:
    """Keep the parts of uploads' names that can be part of a path."""
    for value in values.values():
        if isinstance(value, UploadFile) and value.filename:
            name = Path(value.filename.replace("\\", "/")).name
            if len(name.encode(errors="replace")) > 200 or not name.isprintable():
                raise refuse(400, "the name of the file that was sent is no plain one: rename it.")
            value.filename = check_data(name, "the name of a file")


def _work(endpoint: Callable[..., Any], check: Callable[[Values], None] | None, values: Values) -> Any:
    """Answer a call; runs in a thread."""
    with _beginning:  # after POST /reload the first call makes the app anew
        app_instance()
    try:
        _upload_names(values)
        for name in ("model", "method", "strategy"):
            if isinstance(values.get(name), str):
                check_data(values[name], name)
        if isinstance(values.get("params"), dict):
            _data(values["params"], "params")
        if check is not None:
            check(values)
        result = endpoint(**values)
        if inspect.iscoroutine(result):  # they never wait for anything
            try:
                result.send(None)
            except StopIteration as end:
                result = end.value
        if isinstance(result, FileResponse) and _is_temporary(result.path):
            remove_after_call(result.path)
        return result
    finally:
        # FastAPI runs them after an answer only, not after a refusal
        for value in values.values():
            for task in value.tasks if isinstance(value, BackgroundTasks) else ():
                if task.func is remove_file:
                    remove_after_call(task.args[0])


def _is_temporary(path: str | os.PathLike) -> bool:
    return Path(path).parent == Path(tempfile.gettempdir())


def _offered(route: APIRoute, module: str, method: str) -> Callable[..., Any]:
    """Make the endpoint of a call: it checks the call, and works in a thread of the right pool."""
    endpoint, check = route.endpoint, CHECKS.get((method, route.path))

    async def answer(**values: Any) -> Any:
        work = contextvars.copy_context().run
        pool = _pool(module, values)
        return await asyncio.get_running_loop().run_in_executor(pool, work, _work, endpoint, check, values)

    answer.__name__ = endpoint.__name__
    answer.__signature__ = inspect.signature(endpoint)  # type: ignore[attr-defined]
    return answer


# --- the application --------------------------------------------------------------------------------------------------


def _answer(status: int, sentence: str) -> JSONResponse:
    return JSONResponse({"detail": sentence.encode("utf-8", "backslashreplace").decode()}, status)


def _sentence(_request: Request, error: Exception) -> JSONResponse:
    if isinstance(error, MONAILabelException):
        return _answer(400 if error.error == MONAILabelError.INVALID_INPUT else 500, str(error.msg))
    if isinstance(error, RequestValidationError | ValidationError):
        first = error.errors()[0]
        where = ".".join(str(part)[:40] for part in first["loc"])
        return _answer(422, f"{where}: {first['msg'][:200]}.")
    return _answer(400, str(error))


def _http_error(_request: Request, error: HTTPException) -> JSONResponse:
    sentence = str(error.detail)
    if error.status_code in (404, 405) and sentence in ("Not Found", "Method Not Allowed"):
        sentence = "there is no such call here; GET / shows those that there are."
    return JSONResponse({"detail": sentence}, error.status_code, headers=getattr(error, "headers", None))


@asynccontextmanager
async def _lifespan(application: FastAPI) -> AsyncIterator[None]:
    with temporary_folder(settings.MONAI_LABEL_APP_DIR):
        async with monailabel.app.lifespan(application):
            yield


def _routes() -> Iterator[tuple[APIRoute, str]]:
    modules = [info, model, infer, wsi_infer, batch_infer, train, activelearning, scoring, datastore, logs]
    if settings.MONAI_LABEL_AUTH_ENABLE:
        modules.append(login)
    for module in modules:
        for route in module.router.routes:
            yield route, module.__name__.rpartition(".")[2]
    for route in monailabel.app.app.routes:
        if isinstance(route, APIRoute) and route.path in ("/", "/favicon.ico", "/reload"):
            yield route, ""


def _application() -> FastAPI:
    application = FastAPI(title="KWTL", docs_url=None, redoc_url="/docs", lifespan=_lifespan)
    for route, module in _routes():
        for method in sorted(route.methods):
            application.add_api_route(
                route.path,
                _offered(route, module, method),
                methods=[method],
                summary=route.summary,
                tags=route.tags,
                include_in_schema=route.include_in_schema,
                deprecated=route.deprecated,
                operation_id=f"{method.lower()}_{module}_{route.name}",
                response_model=None,
            )
    for kind in (MONAILabelException, KWTLError, RequestValidationError, ValidationError):
        application.add_exception_handler(kind, _sentence)
    application.add_exception_handler(HTTPException, _http_error)
    application.add_middleware(TidyUp)
    application.add_middleware(
        Gate, token=os.environ.get(TOKEN), upload_mib=int(os.environ.get(UPLOAD_MIB) or 1024)
    )  # the last one added is the first one asked
    return application


app = _application()

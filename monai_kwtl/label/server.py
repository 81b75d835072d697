"""MONAI Label's web application, closed to other web sites, with sentences for bare errors. Needs monailabel."""

from __future__ import annotations

import json
import os

from fastapi import FastAPI, Request
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import JSONResponse
from monailabel.app import app
from monailabel.interfaces.exception import MONAILabelError, MONAILabelException
from starlette.middleware.trustedhost import TrustedHostMiddleware

from monai_kwtl.errors import KWTLError

__all__ = ["ONLY_LOCAL", "app"]

ONLY_LOCAL = "KWTL_LABEL_ONLY_LOCAL"  # environment variable: 1 answers only requests to an address of this machine
LOCAL_HOSTS = ["127.0.0.1", "localhost", "[::1]", "testserver"]


def _sentence(_request: Request, error: Exception) -> JSONResponse:
    if isinstance(error, MONAILabelException):
        status = 400 if error.error == MONAILabelError.INVALID_INPUT else 500
        return JSONResponse({"detail": str(error.msg)}, status)
    if isinstance(error, json.JSONDecodeError):
        return JSONResponse({"detail": f"the parameters are no JSON: {error}"}, 400)
    return JSONResponse({"detail": str(error)}, 400)


def close(application: FastAPI) -> None:
    """Take away what lets every web page, open in the same browser, talk to the server, and add the sentences."""
    application.user_middleware = [one for one in application.user_middleware if one.cls is not CORSMiddleware]
    if os.environ.get(ONLY_LOCAL) == "1":
        # a name that leads here, but that another site has chosen, is not answered either
        application.add_middleware(TrustedHostMiddleware, allowed_hosts=LOCAL_HOSTS)
    for kind in (MONAILabelException, KWTLError, json.JSONDecodeError):
        application.add_exception_handler(kind, _sentence)


close(app)

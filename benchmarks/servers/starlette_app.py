"""The same of Starlette: JSON, and a file (that of the environment's BENCHMARK_FILE)."""

from __future__ import annotations

import os

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route


async def _greeting(_request: Request) -> Response:
    return JSONResponse({"message": "Hello, World!"})


async def _file(_request: Request) -> Response:
    return FileResponse(os.environ["BENCHMARK_FILE"])


json = Starlette(routes=[Route("/plaintext", _greeting)])
file = Starlette(routes=[Route("/plaintext", _file)])

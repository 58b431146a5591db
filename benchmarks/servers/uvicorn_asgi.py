"""uvicorn_asgi.py PORT MODULE:APP [WS]: the same on uvicorn, with uvloop, httptools and this WebSocket implementation."""

import sys

import uvicorn

ws = sys.argv[3] if len(sys.argv) > 3 else "none"
uvicorn.run(
    sys.argv[2],
    host="127.0.0.1",
    port=int(sys.argv[1]),
    loop="uvloop",
    http="httptools",
    ws=ws,  # type: ignore[arg-type]  # one of uvicorn's names
    timeout_keep_alive=120,
    access_log=False,
    log_level="error",
)

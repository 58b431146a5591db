"""uvicorn_asgi.py PORT: the same app on uvicorn, with uvloop and httptools."""

import sys

import uvicorn
from asgi_app import app

uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), loop="uvloop", http="httptools", log_level="error")

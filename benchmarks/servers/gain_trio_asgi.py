"""gain_trio_asgi.py PORT: an ASGI app on gain_trio."""

import functools
import sys

from asgi_app import app

import gain_trio
import gain_trio.asgi

gain_trio.run(functools.partial(gain_trio.asgi.serve, app, f"tcp://127.0.0.1:{sys.argv[1]}"))

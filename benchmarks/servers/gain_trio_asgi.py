"""gain_trio_asgi.py PORT MODULE:APP [io_uring|trio]: an ASGI app on gain_trio, on the ring or over sockets."""

import functools
import sys
from typing import cast

import gain_trio
import gain_trio.asgi
from gain_trio import Backend

backend = cast(Backend, sys.argv[3] if len(sys.argv) > 3 else "io_uring")
address = f"tcp://127.0.0.1:{sys.argv[1]}"
serve = functools.partial(gain_trio.asgi.serve, sys.argv[2], address, timeout_keep_alive=120)
gain_trio.run(serve, backend=backend)

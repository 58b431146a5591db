"""granian_asgi.py PORT MODULE:APP: the same on granian, with one worker, which is a process of its own."""

import sys

from granian import Granian
from granian.constants import Interfaces
from granian.http import HTTP1Settings

if __name__ == "__main__":  # the worker process imports this file
    Granian(
        sys.argv[2],
        address="127.0.0.1",
        port=int(sys.argv[1]),
        interface=Interfaces.ASGI,
        workers=1,
        backlog=8192,  # and as many connections at a time
        http1_settings=HTTP1Settings(header_read_timeout=120_000),
        log_access=False,
        log_level="error",  # type: ignore[arg-type]
    ).serve()

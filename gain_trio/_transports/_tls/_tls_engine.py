"""TLS without a transport: an :class:`ssl.SSLObject` between a buffer of incoming and a buffer of outgoing bytes.

The engine never waits: its caller passes in the bytes that have arrived, and sends the bytes that OpenSSL has made.  Where
the compiled modules are there, :meth:`Engine.read` is a method in C, which does the same without a frame for each record
(``_ffi/fastpath/tls_engine.c``).
"""

from __future__ import annotations

import contextlib
import errno
import os
import ssl
from typing import Any, Final, final

_RECORD = 16384
"""The most bytes of data in one record."""
OUT_OF_MEMORY: Final = OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
"""The error of a connection that has lost bytes for want of memory: it is made while there is some."""
INTERRUPTED: Final = OSError(errno.EINTR, "an exception, as of the handler of a signal, has cost bytes")
"""The error of a connection that has lost bytes to a Ctrl-C, say: :mod:`ssl` has handlers run when OpenSSL has read."""


def is_cut_off(error: BaseException | None) -> bool:
    """Whether the error means a stream that ended without close_notify.  Python 3.10 raises a plain SSLError for that."""
    return isinstance(error, ssl.SSLEOFError) or "UNEXPECTED_EOF_WHILE_READING" in (
        getattr(error, "strerror", "") or ""
    )


def _records_of(ssl_object: ssl.SSLObject) -> Any:
    """What reads and writes records for the object: an object of :mod:`ssl`'s in C, which spares a frame a call."""
    return getattr(ssl_object, "_sslobj", ssl_object) if type(ssl_object) is ssl.SSLObject else ssl_object


@final
class Engine:
    """One end of a TLS connection.  The handshake comes first: Python checks the peer's name in it."""

    __slots__ = ("_incoming", "_outgoing", "_partial_record", "_records", "_withheld", "ended", "error", "ssl_object")

    def __init__(self, context: ssl.SSLContext, *, server_side: bool, server_hostname: str | None = None) -> None:
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._withheld = 0
        self._partial_record: int | None = None  # what the methods in C know of a record of which a part is missing
        self.ssl_object = context.wrap_bio(
            self._incoming, self._outgoing, server_side=server_side, server_hostname=server_hostname
        )
        self._records = _records_of(self.ssl_object)
        self.ended = False
        """Whether the peer has ended the stream by close_notify."""
        self.error: OSError | None = None
        """The error after which nothing more can be read or written, or None."""

    def feed(self, data: bytes) -> None:
        """Pass in bytes that have arrived; no bytes mean the end of the stream."""
        self._partial_record = None
        if data:
            self._incoming.write(data)
        else:
            self._incoming.write_eof()

    def do_handshake(self) -> bool:
        """Continue the handshake, and return False if it needs more bytes first.  Raises what :mod:`ssl` raises.

        A server with TLS 1.3 offers tickets for later sessions after the handshake.  The engine withholds them until
        there is something else to send.  Otherwise the kernel of a client that sends, closes and never reads would reset
        the connection because of them, and the client's data would be lost.
        """
        try:
            self.ssl_object.do_handshake()
        except ssl.SSLWantReadError:
            return False
        if self.ssl_object.server_side and self.ssl_object.version() == "TLSv1.3":
            self._withheld = self._outgoing.pending
        return True

    def read(self) -> bytes:
        """Decrypt and return all data.  An end or an error after it sets :attr:`ended` or :attr:`error`."""
        pieces = []
        read = self._records.read
        incoming = self._incoming
        try:
            while True:
                # A record is longer than its data, so a short one needs no object for a long one.
                piece = read(min(incoming.pending, _RECORD) or _RECORD)
                if not piece:
                    self.ended = True
                    break
                pieces.append(piece)
                if not incoming.pending and not incoming.eof and not self.ssl_object.pending():
                    break  # one more read would cost an exception
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLError as error:  # a signal's handler may raise any other OSError
            self.error = error.with_traceback(None)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def write(self, data: bytes | memoryview) -> int:
        """Encrypt ``data``, and return how many bytes of it.

        A short write happens in a renegotiation of TLS 1.2, which needs bytes from the peer first.  The caller must write
        the same rest next.
        """
        done = 0
        try:
            done = self._records.write(data)
            while done < len(data):
                done += self._records.write(memoryview(data)[done:])
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLError as error:  # a signal's handler may raise any other OSError
            self.error = error.with_traceback(None)
        return done

    def close(self) -> None:
        """Write close_notify, without waiting for the peer's."""
        with contextlib.suppress(OSError):  # OpenSSL wants to read the peer's, or is in a handshake
            self.ssl_object.unwrap()

    @property
    def has_outgoing(self) -> bool:
        """Whether there are bytes to send, and not only withheld tickets."""
        return self._outgoing.pending > self._withheld

    def take_outgoing(self) -> bytes:
        """Remove and return the bytes to send, tickets included."""
        self._withheld = 0
        return self._outgoing.read()


def error_of_a_cut() -> OSError:
    """The error of :mod:`ssl` for a stream that ended without close_notify."""
    return ssl.SSLEOFError(ssl.SSLErrorNumber.SSL_ERROR_EOF, "EOF occurred in violation of protocol")

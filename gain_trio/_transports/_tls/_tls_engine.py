"""TLS without a transport: :class:`ssl.SSLObject` between two buffers, one of what has come, one of what is to go.

Nothing here waits and nothing is lost: what OpenSSL needs is fed, what it has is taken.
"""

from __future__ import annotations

import contextlib
import ssl
from typing import final

_RECORD = 16384
"""The most that one record brings."""


def is_cut_off(error: BaseException | None) -> bool:
    """Whether an error of ssl's says that the stream ended without close_notify.  Python 3.10 has a plain SSLError there."""
    return isinstance(error, ssl.SSLEOFError) or "UNEXPECTED_EOF_WHILE_READING" in (
        getattr(error, "strerror", "") or ""
    )


@final
class Engine:
    """One end of a TLS connection.  Until its handshake is done, only that: Python checks the peer's name in it."""

    __slots__ = ("_incoming", "_outgoing", "_withheld", "ended", "error", "ssl_object")

    def __init__(self, context: ssl.SSLContext, *, server_side: bool, server_hostname: str | None = None) -> None:
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._withheld = 0
        self.ssl_object = context.wrap_bio(
            self._incoming, self._outgoing, server_side=server_side, server_hostname=server_hostname
        )
        self.ended = False
        """The peer has ended the stream, by close_notify."""
        self.error: OSError | None = None
        """Why nothing more can be read or written."""

    def feed(self, data: bytes) -> None:
        """What has come; nothing is the end of the stream."""
        if data:
            self._incoming.write(data)
        else:
            self._incoming.write_eof()

    def do_handshake(self) -> bool:
        """Go on with it; False if more has to come first.  Raises what :mod:`ssl` raises.

        A server with TLS 1.3 offers tickets for later sessions when all is done.  They are withheld until there is something
        else to send: a client that sends, closes and never reads would have its connection reset because of them, and what
        it had sent would be lost.
        """
        try:
            self.ssl_object.do_handshake()
        except ssl.SSLWantReadError:
            return False
        if self.ssl_object.server_side and self.ssl_object.version() == "TLSv1.3":
            self._withheld = self._outgoing.pending
        return True

    def read(self) -> bytes:
        """Decrypt all there is.  What comes behind it, the end or an error, is in :attr:`ended` or :attr:`error`."""
        pieces = []
        read = self.ssl_object.read
        incoming = self._incoming
        try:
            while True:
                piece = read(_RECORD)
                if not piece:
                    self.ended = True
                    break
                pieces.append(piece)
                if not incoming.pending and not incoming.eof and not self.ssl_object.pending():
                    break  # to be told so by OpenSSL costs an exception
        except ssl.SSLWantReadError:
            pass
        except OSError as error:
            self.error = error.with_traceback(None)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def write(self, data: bytes | memoryview) -> int:
        """Encrypt it.  Returns how much of it: less than all in a renegotiation of TLS 1.2, for which more has to come.

        Then the same bytes are to be written next.
        """
        done = 0
        try:
            done = self.ssl_object.write(data)
            while done < len(data):
                done += self.ssl_object.write(memoryview(data)[done:])
        except ssl.SSLWantReadError:
            pass
        except OSError as error:
            self.error = error.with_traceback(None)
        return done

    def close(self) -> None:
        """Write close_notify.  There is no waiting for the peer's."""
        with contextlib.suppress(OSError):  # it would like to read that, or TLS is amidst something
            self.ssl_object.unwrap()

    @property
    def has_outgoing(self) -> bool:
        """Whether there is something to send, and no reason to wait for more."""
        return self._outgoing.pending > self._withheld

    def take_outgoing(self) -> bytes:
        """What is to be sent, tickets included."""
        self._withheld = 0
        return self._outgoing.read()


def error_of_a_cut() -> OSError:
    """What ssl says of a stream that ended without close_notify."""
    return ssl.SSLEOFError(ssl.SSLErrorNumber.SSL_ERROR_EOF, "EOF occurred in violation of protocol")

"""An echo server with TLS is a handler, a nursery, and a server's SSLContext.

    python examples/tls_echo.py --cert cert.pem --key key.pem [tcp://127.0.0.1:0]

A certificate for trying it out, signed by itself:

    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 30 -subj /CN=localhost \
        -addext subjectAltName=DNS:localhost,IP:127.0.0.1 -keyout key.pem -out cert.pem

and a client, PORT being the one that the server prints:

    openssl s_client -connect 127.0.0.1:PORT -CAfile cert.pem -verify_return_error -quiet

Ctrl-C stops the server.
"""

import argparse
import signal
import ssl
from functools import partial

import trio

import gain_trio


async def echo(connection: gain_trio.Connection) -> None:
    """Send back all data.  The handshake is complete when the handler starts."""
    print(f"{connection.tls_version()} with {connection.remote_address[0]}", flush=True)
    async for data in connection.messages():
        await connection.send(data)


async def main(address: str, context: ssl.SSLContext) -> None:
    """Serve until Ctrl-C or SIGTERM: cancelling the nursery stops the server."""
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with trio.open_nursery() as nursery:
            server = await nursery.start(partial(gain_trio.serve, echo, address, ssl_context=context))
            for host, port, *_ in server.addresses:
                print(f"listening on {host} port {port}", flush=True)
            await anext(signals)
            nursery.cancel_scope.cancel()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="An echo server with TLS.")
    parser.add_argument("address", nargs="?", default="tcp://127.0.0.1:0")
    parser.add_argument("--cert", required=True, help="the server's certificate, with the chain that verifies it (PEM)")
    parser.add_argument("--key", required=True, help="its private key (PEM)")
    options = parser.parse_args()
    server_context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    server_context.load_cert_chain(options.cert, options.key)
    gain_trio.run(main, options.address, server_context)

"""An echo server of Python's websockets library over TLS.

`server.py CERTIFICATE KEY` prints its port, and ends at the end of its standard input.
"""

import asyncio
import ssl
import sys

import websockets


async def echo(connection):
    await connection.send("hello")
    pong = await connection.ping(b"are you there")
    await asyncio.wait_for(pong, 10)
    async for message in connection:
        if message == "close":
            await connection.close(4001, "as you asked")
            return
        await connection.send(message)


async def main():
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(sys.argv[1], sys.argv[2])
    async with websockets.serve(echo, "localhost", 0, ssl=context, max_size=None) as server:
        print(server.sockets[0].getsockname()[1], flush=True)
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


asyncio.run(main())

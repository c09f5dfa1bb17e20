"""NNI's web UI for other machines, to those who have a token: to look at, not to change anything.

NNI's own page has no password, and whoever reaches it may end trials. So it stays on the loopback, and this small
proxy stands before it. It speaks plain HTTP: who can listen to the network can read the token, which is why it is made
anew for every command, is written nowhere, and opens nothing that changes a run. An SSH tunnel needs none of this.
"""

import asyncio
import hmac
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from urllib.parse import urlencode

from aiohttp import ClientError, ClientSession, ClientTimeout, web

from nni_bertnas.errors import ConfigError

FIRST_PORT = 8880
_PORTS = 100  # that are tried
_COOKIE = "bertnas_token"
_READ = ("GET", "HEAD")
_PASSED = ("Content-Type", "Cache-Control", "ETag", "Last-Modified")  # of an answer's headers
_SAFE = {"Referrer-Policy": "no-referrer", "X-Frame-Options": "DENY", "X-Content-Type-Options": "nosniff"}
_SECONDS = ClientTimeout(total=60)
_SESSION: web.AppKey[ClientSession] = web.AppKey("session", ClientSession)


@contextmanager
def public_portal(portal: str, token: str, first: int = FIRST_PORT) -> Iterator[str]:
    """Let other machines look at a web UI, with the token, as long as the block lasts.

    Args:
        portal: Address of the web UI, on this machine's loopback.
        token: What has to be shown: `?token=` once in a browser, or `Authorization: Bearer`.
        first: The first port that is tried, on all interfaces.

    Yields:
        The address from outside, without the token.

    Raises:
        ConfigError: No port is free.
    """
    loop = asyncio.new_event_loop()
    listener = _listen(first)
    runner = web.AppRunner(_app(portal, token), access_log=None, shutdown_timeout=1)  # whose lines would hold the token

    async def start() -> None:
        await runner.setup()
        await web.SockSite(runner, listener).start()

    try:
        loop.run_until_complete(start())
        thread = threading.Thread(target=loop.run_forever, daemon=True)
        thread.start()
        try:
            yield f"http://{socket.gethostname()}:{listener.getsockname()[1]}"
        finally:
            loop.call_soon_threadsafe(loop.stop)
            thread.join()
            loop.run_until_complete(runner.cleanup())
    finally:
        listener.close()
        loop.close()


def _listen(first: int) -> socket.socket:
    for port in range(first, min(first + _PORTS, 65536)):
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("0.0.0.0", port))
        except OSError:
            listener.close()
        else:
            return listener
    raise ConfigError(f"--public: no free port from {first} on; use an SSH tunnel, see docs/cluster.md")


def _app(portal: str, token: str) -> web.Application:
    async def answer(request: web.Request) -> web.StreamResponse:
        if _same(request.query.get("token"), token):
            rest = urlencode([pair for pair in request.query.items() if pair[0] != "token"])
            clean = web.Response(status=303, headers={"Location": request.path + (f"?{rest}" if rest else ""), **_SAFE})
            clean.set_cookie(_COOKIE, token, httponly=True, samesite="Strict")
            return clean
        shown = request.headers.get("Authorization", "").removeprefix("Bearer ")
        if not (_same(request.cookies.get(_COOKIE), token) or _same(shown, token)):
            return web.Response(status=401, text="a token is needed: ?token=…, as bertnas printed it\n", headers=_SAFE)
        if request.method not in _READ:
            return web.Response(status=405, text="only to look at; use an SSH tunnel\n", headers=_SAFE)
        if request.path.startswith("/netron"):  # NNI would fetch from elsewhere
            return web.Response(status=404, headers=_SAFE)
        return await _forward(request.app[_SESSION], portal, request)

    async def sessions(app: web.Application) -> AsyncIterator[None]:
        app[_SESSION] = ClientSession(timeout=_SECONDS, trust_env=False)
        yield
        await app[_SESSION].close()

    app = web.Application()
    app.cleanup_ctx.append(sessions)
    app.router.add_route("*", "/{path:.*}", answer)
    return app


def _same(shown: str | None, token: str) -> bool:
    return shown is not None and hmac.compare_digest(shown.encode(), token.encode())


async def _forward(session: ClientSession, portal: str, request: web.Request) -> web.StreamResponse:
    try:
        async with session.request(request.method, portal + request.raw_path, allow_redirects=False) as said:
            headers = {name: said.headers[name] for name in _PASSED if name in said.headers}
            return web.Response(status=said.status, body=await said.read(), headers={**headers, **_SAFE})
    except (ClientError, TimeoutError):
        return web.Response(status=502, text="NNI does not answer; between two stages it is not there\n", headers=_SAFE)

"""An exported model as a small web service."""

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import uvicorn
from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Histogram, generate_latest
from pydantic import BaseModel, ConfigDict, Field, create_model

from .classifier import Classifier

Message = dict[str, Any]
_LOOPBACK = ("127.0.0.1", "::1", "localhost")


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a request may ask for.

    Attributes:
        max_texts: Rows of a request.
        max_characters: Of a text.
        max_bytes: Of a request's body.
        max_waiting: Requests that wait for their turn; one more is sent away.
        max_connections: At a time; one more is sent away.
        seconds: That a request's body may take to come.
    """

    max_texts: int = 64
    max_characters: int = 10_000
    max_bytes: int = 1_000_000
    max_waiting: int = 256
    max_connections: int = 512
    seconds: float = 30.0


class Batcher:
    """Puts the rows of requests that wait at the same time into the same passes.

    Nothing is waited for: while one pass runs, the requests of the next gather.

    Args:
        classifier: Runs in a thread of its own.
        limits: Of requests.
        told: Is called with the rows of every pass.
    """

    def __init__(self, classifier: Classifier, limits: Limits, told: Callable[[int], None]) -> None:
        self.classifier, self.told = classifier, told
        self.queue: asyncio.Queue[tuple[list[str], list[str], asyncio.Future[np.ndarray]]] = asyncio.Queue(
            limits.max_waiting
        )

    async def probabilities(self, texts: list[str], pairs: list[str]) -> np.ndarray:
        """Of some rows; see :meth:`Classifier.probabilities`.

        Raises:
            asyncio.QueueFull: Too many wait.
        """
        future: asyncio.Future[np.ndarray] = asyncio.get_running_loop().create_future()
        self.queue.put_nowait((texts, pairs, future))
        return await future

    async def work(self) -> None:
        """Answer requests for ever."""
        while True:
            waiting = [await self.queue.get()]
            while not self.queue.empty() and sum(len(one[0]) for one in waiting) < self.classifier.batch_size:
                waiting.append(self.queue.get_nowait())
            texts = [text for one in waiting for text in one[0]]
            pairs = [text for one in waiting for text in one[1]]
            try:
                found = await asyncio.to_thread(self.classifier.probabilities, texts, pairs or None)
            except Exception as error:
                for *_, future in waiting:
                    if not future.done():
                        future.set_exception(error)
                continue
            self.told(len(texts))
            first = 0
            for own, _, future in waiting:
                if not future.done():  # the client may have gone
                    future.set_result(found[first : first + len(own)])
                first += len(own)


class LimitedBody:
    """Refuses bodies over a size, those that do not say their size too, and those that do not come.

    Args:
        app: What is guarded.
        max_bytes: Of a body.
        seconds: Until it must be there.
    """

    def __init__(self, app: Callable[..., Awaitable[None]], max_bytes: int, seconds: float) -> None:
        self.app, self.max_bytes, self.seconds = app, max_bytes, seconds

    async def __call__(self, scope: Any, receive: Callable[[], Awaitable[Message]], send: Any) -> None:
        """See ASGI."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        body, end = b"", time.monotonic() + self.seconds
        while True:
            try:
                message = await asyncio.wait_for(receive(), max(0.0, end - time.monotonic()))
            except asyncio.TimeoutError:
                text = f"the body must be there within {self.seconds:g} s"
                await JSONResponse({"detail": text}, 408, {"connection": "close"})(scope, receive, send)
                return
            body += message.get("body", b"")
            if len(body) > self.max_bytes:
                text = f"the body must be at most {self.max_bytes} bytes; send the texts in several requests"
                await JSONResponse({"detail": text}, 413, {"connection": "close"})(scope, receive, send)
                return
            if message["type"] == "http.disconnect" or not message.get("more_body"):
                break
        given = False

        async def once() -> Message:
            nonlocal given
            if given:
                return await receive()
            given = True
            return {"type": "http.request", "body": body}

        await self.app(scope, once, send)


def make_app(classifier: Classifier, limits: Limits | None = None) -> FastAPI:
    """The service: `POST /predict`, `GET /health`, `GET /metrics`.

    Args:
        classifier: What answers.
        limits: Of requests; None: the usual ones.
    """
    limits = limits or Limits()
    registry = CollectorRegistry()
    requests = Counter("bertnas_requests", "Requests by status.", ["status"], registry=registry)
    rows = Counter("bertnas_rows", "Rows answered.", registry=registry)
    seconds = Histogram("bertnas_request_seconds", "From a request to its answer.", registry=registry)
    sizes = Histogram("bertnas_batch_rows", "Rows of a pass.", buckets=(1, 2, 4, 8, 16, 32, 64), registry=registry)
    batcher = Batcher(classifier, limits, sizes.observe)

    @asynccontextmanager
    async def running(app: FastAPI) -> AsyncIterator[None]:
        worker = asyncio.create_task(batcher.work())
        yield
        worker.cancel()

    app = FastAPI(title="bertnas", docs_url=None, redoc_url=None, openapi_url=None, lifespan=running)
    app.add_middleware(LimitedBody, max_bytes=limits.max_bytes, seconds=limits.seconds)

    @app.middleware("http")
    async def counted(request: Request, answer: Callable[[Request], Awaitable[Response]]) -> Response:
        start = time.perf_counter()
        response = await answer(request)
        requests.labels(response.status_code).inc()
        if request.url.path == "/predict":
            seconds.observe(time.perf_counter() - start)
        return response

    @app.exception_handler(RequestValidationError)
    async def refused(request: Request, error: RequestValidationError) -> JSONResponse:
        said = "; ".join(f"{'.'.join(map(str, one['loc'][1:])) or 'body'}: {one['msg']}" for one in error.errors()[:5])
        return JSONResponse({"detail": said}, 422)

    async def predict(body: Any) -> dict[str, Any]:
        texts, pairs = body.texts, getattr(body, "pairs", None)
        try:
            classifier.check(texts, pairs)
            found = await batcher.probabilities(texts, pairs or [])
        except ValueError as error:
            raise HTTPException(422, str(error)) from error
        except asyncio.QueueFull:
            raise HTTPException(503, "too many requests wait; try again later", {"Retry-After": "1"}) from None
        rows.inc(len(texts))
        return {"predictions": [classifier.describe(row) for row in found]}

    predict.__annotations__["body"] = _request_model(classifier, limits)
    app.post("/predict")(predict)

    @app.get("/health")
    async def health() -> dict[str, Any]:
        manifest = classifier.manifest
        return {
            "status": "ok", "task": manifest.task, "labels": manifest.labels, "texts": manifest.texts,
            "version": manifest.version,
        }  # fmt: skip

    @app.get("/metrics")
    async def metrics() -> PlainTextResponse:
        return PlainTextResponse(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    return app


def serve(classifier: Classifier, host: str, port: int, limits: Limits | None = None) -> None:
    """Answer requests until the process is ended.

    Args:
        classifier: What answers.
        host: Address to listen at; one that others reach is warned of, as nobody is asked who they are.
        port: Likewise.
        limits: Of requests; None: the usual ones.
    """
    if host not in _LOOPBACK:
        print("the service asks nobody who they are: put it behind something that does", file=sys.stderr)
    print(f"{classifier.folder} at http://{host}:{port}/predict", flush=True)
    limits = limits or Limits()
    uvicorn.run(
        make_app(classifier, limits), host=host, port=port, log_level="warning", server_header=False,
        limit_concurrency=limits.max_connections,
    )  # fmt: skip


def _request_model(classifier: Classifier, limits: Limits) -> type[BaseModel]:
    """What `/predict` takes: `texts`, and of a model of pairs `pairs`, as many."""
    text = Annotated[str, Field(min_length=1, max_length=limits.max_characters)]
    texts = (Annotated[list[text], Field(min_length=1, max_length=limits.max_texts)], ...)
    fields: dict[str, Any] = {"texts": texts, **({"pairs": texts} if classifier.pairs else {})}
    strict = ConfigDict(extra="forbid", strict=True)
    made: type[BaseModel] = create_model("Texts", __config__=strict, **fields)
    return made

"""Classify pictures that are posted: ``ARTIFACT=int8/ uvicorn --app-dir examples/service app:app``."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

from fastapi import FastAPI, HTTPException, Query, Request

import vitedge

MAX_BYTES = 20_000_000
MAX_WAITING = 32  # calls that hold a picture, those at work among them


@asynccontextmanager
async def opened(app: FastAPI) -> AsyncIterator[None]:
    """Open the artifact when the service starts, and close it when it stops."""
    threads = int(os.environ["THREADS"]) if "THREADS" in os.environ else None
    app.state.session = await asyncio.to_thread(vitedge.open, os.environ["ARTIFACT"], threads=threads)
    app.state.waiting = 0
    yield
    await asyncio.to_thread(app.state.session.close)


app = FastAPI(title="vitedge", lifespan=opened)


@app.post("/classify")
async def classify(request: Request, top_k: Annotated[int, Query(ge=1, le=100)] = 5) -> list[dict[str, str | float]]:
    """The best classes of the picture in the request's body."""
    state = request.app.state
    if state.waiting >= MAX_WAITING:
        raise HTTPException(503, f"{state.waiting} pictures wait", {"Retry-After": "1"})
    state.waiting += 1
    try:
        answers = await state.session.classify_async(await body(request), top_k)
    except vitedge.ImageError as error:
        raise HTTPException(422, error.reason) from error
    finally:
        state.waiting -= 1
    return [answer._asdict() for answer in answers]


@app.get("/health")
async def health(request: Request) -> dict[str, object]:
    """What runs where."""
    return dict(request.app.state.session.info)


async def body(request: Request) -> bytes:
    """The request's body, which may have :data:`MAX_BYTES`."""
    content = bytearray()
    async for part in request.stream():
        content += part
        if len(content) > MAX_BYTES:
            raise HTTPException(413, f"the picture has more than {MAX_BYTES:,} bytes")
    return bytes(content)

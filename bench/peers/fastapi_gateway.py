"""The gateway that people write in an afternoon: FastAPI, PyJWT and httpx. It caches nothing."""

# Its libraries are in .venv-bench, where mypy does not look.
# mypy: ignore-errors

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import jwt
from fastapi import FastAPI, Header, HTTPException
from fastapi.responses import JSONResponse

SECRET = os.environ["SECRET"]
LIMITS = httpx.Limits(max_connections=100, max_keepalive_connections=100)


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    async with httpx.AsyncClient(base_url=os.environ["LEDGER"], limits=LIMITS) as client:
        app.state.ledger = client
        yield


# Nobody reads its telemetry here, and it is not free.
NO_TELEMETRY = {"tracing": False, "metrics": False, "logs": False}

app = FastAPI(lifespan=lifespan, telemetry=NO_TELEMETRY)


@app.get("/ledger/{name}")
async def rows_of_a_user(
    name: str, limit: int, authorization: str = Header(), username: str = Header()
) -> JSONResponse:
    try:
        claims = jwt.decode(authorization.removeprefix("Bearer "), SECRET, algorithms=["HS256"])
    except jwt.InvalidTokenError as error:
        raise HTTPException(401) from error
    if not claims["sub"] == username == name:
        raise HTTPException(403)
    reply = await app.state.ledger.get(f"/ledger/{name}", params={"limit": limit})
    answer = reply.raise_for_status().json()
    answer["api_data"] = [row for row in answer["api_data"] if row["username"] == username]
    return JSONResponse(answer)

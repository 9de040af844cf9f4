"""The two things that wrap a request on both sides: its context, and the error boundary."""

import json
import time

import structlog
from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from gateway import logs
from gateway.edge import TRACE, check_framing, check_target, request_id, respond
from gateway.endpoints import api_of
from gateway.errors import GatewayError, InvalidRequest, MethodNotAllowed, NotFound
from gateway.exchange import Answer, Trace
from gateway.metrics import Metrics

METRICS = web.AppKey("metrics", Metrics)


def request_context(metrics: Metrics) -> Middleware:
    """Gives each request a trace; logs and counts it when it is answered."""

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        trace = request[TRACE] = Trace(request_id(request), time.monotonic(), _route(request))
        metrics.started()
        status = 499  # the caller left, or the answer was cut
        try:
            response = await handler(request)
            status = 499 if trace.aborted else response.status
            return response
        finally:
            metrics.finished(trace, request.method, status)
            logs.log_request(trace, request.method, status)

    return middleware


@web.middleware
async def error_boundary(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turns every error into an answer in the form of the route's API."""
    try:
        check_framing(request)
        check_target(request)
        return await handler(request)
    except web.HTTPException as error:
        return await _answer(request, _translated(error))
    except GatewayError as error:
        return await _answer(request, error)
    except ConnectionError:
        raise  # nobody is there to be answered
    except Exception as error:
        structlog.get_logger().error(
            "unexpected", request_id=request[TRACE].request_id, **logs.describe(error)
        )
        return await _answer(request, GatewayError("Something went wrong here."))


def _translated(error: web.HTTPException) -> GatewayError:
    """Our error for one that aiohttp raises by itself."""
    if isinstance(error, web.HTTPMethodNotAllowed):
        allow = {"Allow": ", ".join(sorted(error.allowed_methods))}
        return MethodNotAllowed("This route has other methods.", headers=allow)
    if isinstance(error, web.HTTPNotFound):
        return NotFound("There is no such route.")
    return InvalidRequest("The request cannot be handled.")


async def _answer(request: web.Request, error: GatewayError) -> web.StreamResponse:
    trace = request[TRACE]
    trace.code = error.code
    body = api_of(request.rel_url.raw_path).error_body(error, trace.request_id)
    headers = {"Cache-Control": "no-store", **error.headers}
    response = await respond(request, Answer(error.status, json.dumps(body).encode(), headers))
    if error.closes:
        response.force_close()
    return response


def _route(request: web.Request) -> str:
    resource = request.match_info.route.resource
    return resource.canonical if resource is not None else "unmatched"

"""The demo holds what its own description of the API says, whatever is sent to it.

Requests are made from the served OpenAPI document by schemathesis: its examples, every boundary
that it names, and random ones, valid and invalid. They are the same in every run, but
for ids that the ledger makes up.
"""

import asyncio
import itertools
import json
import re
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from schemathesis.config import SchemathesisConfig
from schemathesis.core.failures import Failure
from schemathesis.engine import from_schema
from schemathesis.engine.events import FatalError, NonFatalError, ScenarioFinished
from schemathesis.engine.recorder import Interaction
from schemathesis.generation.meta import CoverageScenario, coverage_scenario
from schemathesis.openapi.checks import JsonSchemaError

from tests.conftest import SECRET, token
from tests.gateway.processes import PATIENCE_S, command, free_ports
from tests.unwatched import unwatched

EXAMPLES = 15
CALLERS = {"admin": "admin", "service": "settlement", "user": "alice"}
HIDDEN = {"lp_id", "lp_name", "created_by_id"}
# The document cannot name a length for the head of a request.
MAX_HEAD = 8000
NUMBERS = itertools.count()
KEY = re.compile("[!-~]{1,255}")
CURSOR = re.compile("[A-Za-z0-9_.~=-]{1,4096}")
CHECKS = {
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "negative_data_rejection",
    "positive_data_acceptance",
    "missing_required_header",
    "unsupported_method",
    "allow_header_conformance",
    "ignored_auth",
}


@dataclass
class Run:
    """What one caller asked, was answered, and what was wrong with it."""

    role: str
    answers: list[Interaction] = field(default_factory=list, repr=False)
    checked: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list, repr=False)
    log: str = field(default="", repr=False)
    complaints: str = ""

    def statuses(self, method: str, path: str = "") -> set[int]:
        """The statuses of answers to a method, on paths that match."""
        return {
            answer.response.status_code
            for answer in self.answers
            if answer.response is not None
            and answer.request.method == method
            and re.search(path, answer.request.uri)
        }


@contextmanager
def demo(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """The URL of a demo in a process of its own; how it ended, what it printed and complained."""
    loop, said = asyncio.new_event_loop(), list[str]()
    stop = asyncio.Event()
    ports = free_ports(2)
    ready: Future[None] = Future()

    async def serving() -> None:
        settings = {"SERVER__PORT": str(ports[0]), "OPS__PORT": str(ports[1])}
        settings |= {"AUTH__SECRET": SECRET, "SERVER__DRAIN_S": "0"}
        async with command("demo", cwd=folder, **settings) as running:
            await running.line("started")
            ready.set_result(None)
            await stop.wait()
            running.process.terminate()
            status, out, err = await running.ended()
            said.extend([str(status), out, err])

    # The process is read from all the while, also while a test is busy.
    thread = threading.Thread(target=lambda: loop.run_until_complete(serving()))
    thread.start()
    try:
        ready.result(PATIENCE_S)
        yield f"http://127.0.0.1:{ports[0]}", said
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()
        loop.close()


def settings_for(role: str) -> dict[str, Any]:
    """How schemathesis is to ask."""
    # What lies just beyond the patterns of an action takes longer to think of than all the rest:
    # instead there are more random ones.
    action = {
        "include-operation-id": "registerAction",
        "phases": {
            "coverage": {"generation": {"mode": "positive"}},
            "fuzzing": {"generation": {"max-examples": EXAMPLES * (6 if role != "user" else 1)}},
        },
    }
    steady = {"extra-data-sources": {"responses": False}}
    return {
        "seed": 1,
        "headers": {
            "Authorization": f"Bearer {token(CALLERS[role], role)}",
            "username": CALLERS[role],
        },
        "generation": {"deterministic": True, "max-examples": EXAMPLES, "database": "none"},
        "phases": {
            # A service may do what an admin may: it is enough to try here and there.
            "coverage": {**steady, "enabled": role != "service"},
            "fuzzing": {**steady, "error-feedback": {"enabled": False}},
            "stateful": {"enabled": False},
        },
        "checks": {"enabled": False} | {name: {"enabled": True} for name in CHECKS},
        "operations": [action],
        "continue-on-failure": True,
    }


def fuzz(url: str, role: str) -> Run:
    """Asks everything as one caller."""
    config = SchemathesisConfig.from_dict(settings_for(role))
    schema = schemathesis.openapi.from_url(f"{url}/openapi.json", config=config)
    schema.hook("filter_failure")(is_wrong)
    run = Run(role)
    for event in from_schema(schema).execute():
        if isinstance(event, ScenarioFinished):
            note(run, event)
        elif isinstance(event, NonFatalError):
            run.wrong.append(f"{event.label}: {event.info.message}")
        elif isinstance(event, FatalError):
            run.wrong.append(repr(event.exception))
    return run


def note(run: Run, event: ScenarioFinished) -> None:
    run.answers += event.recorder.interactions.values()
    for case, checks in event.recorder.checks.items():
        for check in checks:
            run.checked[check.name] += 1
            if check.failure_info is not None:
                failure = check.failure_info.failure
                sent = event.recorder.cases[case].value.as_curl_command()
                run.wrong.append(f"{check.name}: {failure.title}: {failure.message}\n{sent}")


@schemathesis.hook
def before_call(_context: Any, case: Any, _kwargs: Any) -> None:
    """Puts right what the document has no words for, where the rest of it is kept to: a key that
    was used before, a cursor that nobody was given, filters that are no JSON, an integer as 1.0.
    """
    if coverage_scenario(case) is CoverageScenario.MISSING_PARAMETER:
        return
    headers, query, body = case.headers, case.query, case.body
    if KEY.fullmatch(str(headers.get("Idempotency-Key", ""))):
        headers["Idempotency-Key"] = f"{next(NUMBERS):06d}{headers['Idempotency-Key'][6:]}"
    if CURSOR.fullmatch(str(query.get("cursor", ""))):
        del query["cursor"]
    if isinstance(query.get("metadata"), str) and query["metadata"]:
        query["metadata"] = '{"anyKey":"anyValue"}'
    for name in ("amount", "scale"):
        if isinstance(body, dict) and isinstance(body.get(name), float) and body[name].is_integer():
            body[name] = int(body[name])


def is_wrong(_context: Any, failure: Failure, _case: Any, response: Any) -> bool:
    """Whether a failure counts. A head that is too long is answered before its path is known, so
    always in the form of the ledger routes.
    """
    return not (isinstance(failure, JsonSchemaError) and len(response.request.url) > MAX_HEAD)


@pytest.fixture(scope="module", params=CALLERS)
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Run:
    role = str(request.param)
    with demo(tmp_path_factory.mktemp(role)) as (url, said), unwatched():
        run = fuzz(url, role)
    status, printed, run.complaints = said
    assert status == "0"
    # The rest of what a demo prints are its tokens.
    run.log = "\n".join(line for line in printed.splitlines() if line.startswith("{"))
    return run


def test_every_answer_is_what_the_document_says(run: Run) -> None:
    assert "\n\n".join(run.wrong) == ""
    assert set(run.checked) == CHECKS
    assert len(run.answers) > 200


def test_a_role_may_do_what_the_document_says(run: Run) -> None:
    """And what it may do was done, and what is wrong was refused: else nothing was tried."""
    assert run.statuses("GET", r"/ledger(\?|$)") >= {200, 401}
    assert run.statuses("GET", "/ledger/order/") >= {200, 401}
    assert run.statuses("GET", "/ledger") >= {200, 400, 401}
    assert run.statuses("GET", "/instrument-rates") >= {200, 400, 404}
    written = {method: run.statuses(method) for method in ("POST", "PATCH", "DELETE")}
    if run.role == "user":
        assert all(found <= {401, 403, 405} and 403 in found for found in written.values())
        return
    assert run.statuses("POST", r"/ledger(\?|$)") >= {201, 401}
    assert run.statuses("POST", "/instrument-rates") >= {201, 401}
    assert written["PATCH"] >= {200, 401}
    assert written["DELETE"] >= {204, 401}
    if run.role == "admin":
        # Every boundary is tried as an admin; as a service, what chance brings.
        assert {400, 422} <= written["POST"]
        assert 400 in written["PATCH"]
        assert 400 in written["DELETE"]


def test_a_user_is_shown_their_own_rows_without_internal_fields(run: Run) -> None:
    shown = [row for answer in run.answers for row in rows_of(answer)]
    owners = {row["username"] for row in shown}
    internal = {name for row in shown for name in row.keys() & HIDDEN}
    if run.role == "user":
        assert (owners, internal) == ({"alice"}, set())
    else:
        assert (owners >= {"alice", "bob", "carol"}, internal) == (True, HIDDEN)


def test_nothing_of_the_inside_is_told(run: Run) -> None:
    """Neither to callers nor in the log, and nothing happened that nobody had thought of."""
    secrets = (SECRET, token(CALLERS[run.role], run.role).split(".")[0])
    for answer in run.answers:
        assert answer.response is not None
        text = answer.response.content.decode() + str(answer.response.headers)
        assert not [word for word in (*secrets, "Traceback", ".py") if word in text]
        assert answer.response.status_code < 400 or len(text) < 16_384
    assert run.log.count('"event":"request"') >= len(run.answers)
    assert not [word for word in (*secrets, "unexpected", '"level":"error"') if word in run.log]
    assert run.complaints == ""


def rows_of(answer: Interaction) -> list[dict[str, Any]]:
    """The ledger rows in an answer."""
    if answer.response is None or b'"LEDGER_GET_' not in answer.response.content:
        return []
    data = json.loads(answer.response.content)["api_data"]
    return [row for group in data.values() for row in group] if isinstance(data, dict) else data

"""The served document: valid, complete, and no looser or stricter than the gateway itself."""

import json
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from openapi_spec_validator import validate

from gateway import __version__, openapi
from gateway.endpoints import ENDPOINTS, Api, Endpoint, Reply
from gateway.errors import InvalidPath, NotReady
from schemas.ledger import ACTION_SCHEMAS, check_action
from schemas.queries import ListQuerySchema, RateListQuerySchema
from schemas.rates import check_rate, check_rate_patch
from schemas.violations import Violations

Json = dict[str, Any]

DOCUMENT = openapi.document()
PROBES = {("/health/live", "get"), ("/health/ready", "get")}
READ_ERRORS = {"400", "401", "403", "404", "429", "502", "503", "504", "default"}
BODY_ERRORS = {"408", "413", "415", "422"}
every_endpoint = pytest.mark.parametrize("endpoint", ENDPOINTS, ids=lambda one: one.name)


def operation_of(endpoint: Endpoint) -> Json:
    found: Json = DOCUMENT["paths"][endpoint.path][endpoint.method.lower()]
    return found


def resolved(node: Json) -> Json:
    """What a reference stands for, or the node itself."""
    if "$ref" not in node:
        return node
    found: Any = DOCUMENT
    for part in node["$ref"].removeprefix("#/").split("/"):
        found = found[part]
    return dict(found)


def validator_of(schema: Json) -> Draft202012Validator:
    whole = {"components": DOCUMENT["components"], **schema}
    return Draft202012Validator(whole, format_checker=Draft202012Validator.FORMAT_CHECKER)


def parameters_of(endpoint: Endpoint, place: str) -> dict[str, Json]:
    parameters = operation_of(endpoint)["parameters"]
    return {one["name"]: one for one in parameters if one["in"] == place}


def success_of(endpoint: Endpoint) -> Json:
    found: Json = operation_of(endpoint)["responses"][str(endpoint.status)]
    return found


def named(name: str) -> Endpoint:
    return next(endpoint for endpoint in ENDPOINTS if endpoint.name == name)


def request_schema(name: str) -> Draft202012Validator:
    content = operation_of(named(name))["requestBody"]["content"]
    return validator_of(content["application/json"]["schema"])


def parts(node: Any) -> Iterator[Json]:
    """Every object in the document."""
    if isinstance(node, dict):
        yield node
    for inner in node.values() if isinstance(node, dict) else node:
        if isinstance(inner, dict | list):
            yield from parts(inner)


# The document as a whole.


def test_document_is_valid_openapi_3_1() -> None:
    validate(DOCUMENT)
    assert DOCUMENT["openapi"] == "3.1.0"
    assert DOCUMENT["info"]["version"] == __version__


def test_bytes_are_the_document_in_compact_json() -> None:
    compact = json.dumps(DOCUMENT, ensure_ascii=False, separators=(",", ":"))
    assert openapi.document_bytes() == compact.encode()


def test_every_endpoint_is_in_it_and_beside_them_only_the_probes() -> None:
    described = {(path, method) for path, item in DOCUMENT["paths"].items() for method in item}
    table = {(endpoint.path, endpoint.method.lower()) for endpoint in ENDPOINTS}
    assert described == table | PROBES


def test_references_lead_somewhere_and_no_schema_is_left_over() -> None:
    references = {part["$ref"] for part in parts(DOCUMENT) if "$ref" in part}
    assert all(resolved({"$ref": reference}) for reference in references)
    schemas = {f"#/components/schemas/{name}" for name in DOCUMENT["components"]["schemas"]}
    assert schemas <= references


def test_patterns_mean_the_same_in_ecma_262() -> None:
    patterns = {part["pattern"] for part in parts(DOCUMENT) if "pattern" in part}
    for pattern in patterns:
        assert (pattern[0], pattern[-1]) == ("^", "$")
        # Groups with names or flags, and escapes that only Python knows.
        assert not re.search(r"\(\?(?!:)|\\[AZ]|[*+?}]\+", pattern)


def test_examples_are_valid_against_their_schemas() -> None:
    described = [part for part in parts(DOCUMENT) if "schema" in part]
    pairs = [(part["schema"], part["example"]) for part in described if "example" in part]
    for part in described:
        pairs += [(part["schema"], one["value"]) for one in part.get("examples", {}).values()]
    for schema, example in pairs:
        validator_of(schema).validate(example)
    assert len(pairs) > 50


# Who may call what.


@every_endpoint
def test_every_endpoint_needs_a_token(endpoint: Endpoint) -> None:
    assert operation_of(endpoint)["security"] == [{"token": []}]
    scheme = DOCUMENT["components"]["securitySchemes"]["token"]
    assert (scheme["type"], scheme["scheme"]) == ("http", "bearer")


def test_probes_need_none() -> None:
    assert "security" not in DOCUMENT
    assert all("security" not in DOCUMENT["paths"][path][method] for path, method in PROBES)


@every_endpoint
def test_description_names_the_roles_of_the_table(endpoint: Endpoint) -> None:
    words = set(re.findall(r"`(\w+)`", operation_of(endpoint)["description"]))
    assert words == {role.label for role in endpoint.roles}


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("listLedger", "A user is shown their own rows only."),
        ("listOrder", "If none are theirs it is 403, whether or not there are any."),
        ("listUser", "A user may put only their own name in the path; else it is 403."),
        ("getRate", "A user reads what everybody reads."),
        ("registerAction", "a user gets 403."),
    ],
)
def test_description_tells_what_a_user_sees(name: str, words: str) -> None:
    assert operation_of(named(name))["description"].endswith(words)


# What is asked.


@every_endpoint
def test_path_parameters_are_those_of_the_path(endpoint: Endpoint) -> None:
    found = parameters_of(endpoint, "path")
    assert list(found) == re.findall(r"{(\w+)}", endpoint.path)
    assert all(parameter["required"] for parameter in found.values())


A_UUID = "d0aa3885-0f9d-4856-9ca8-7da4fe6e2a95"
SEGMENTS = ["alice", "a.b_c-d", "a@b+c", "a:b", "a" * 64, "a" * 128, "a" * 129, A_UUID, A_UUID[1:]]
SEGMENTS += [".", "..", "", "-a", "_a", "a b", "\u00e4", "a/b", "a\n"]


@pytest.mark.parametrize("segment", SEGMENTS)
@pytest.mark.parametrize(
    ("name", "parameter"), [("listUser", "username"), ("listOrder", "order_id"), ("getRate", "id")]
)
def test_path_patterns_accept_exactly_what_the_gateway_accepts(
    name: str, parameter: str, segment: str
) -> None:
    encoded = "".join(f"%{byte:02X}" for byte in segment.encode())
    path = named(name).path.replace(f"{{{parameter}}}", encoded)
    try:
        accepted = bool(named(name).params(re.sub(r"{\w+}", A_UUID, path)))
    except InvalidPath:
        accepted = False
    pattern = parameters_of(named(name), "path")[parameter]["schema"]["pattern"]
    # `$` is the very end in ECMA-262.
    assert bool(re.fullmatch(pattern.removesuffix("$"), segment)) is accepted


@every_endpoint
def test_username_header_is_required_where_the_gateway_requires_it(endpoint: Endpoint) -> None:
    headers = parameters_of(endpoint, "header")
    assert headers["username"]["required"] is (endpoint.api is Api.LEDGER)
    assert headers["X-Request-Id"]["required"] is False


@every_endpoint
def test_idempotency_key_goes_with_writes(endpoint: Endpoint) -> None:
    headers = parameters_of(endpoint, "header")
    assert ("Idempotency-Key" in headers) is endpoint.is_write
    if endpoint.is_write:
        key = headers["Idempotency-Key"]
        assert key["required"] is (endpoint.name == "registerAction")
        assert key["schema"]["pattern"] == "^[!-~]{1,255}$"


@every_endpoint
def test_query_parameters_are_those_that_are_not_refused(endpoint: Endpoint) -> None:
    expected: set[str] = set()
    if endpoint.reply is Reply.ROWS:
        expected = set(ListQuerySchema().fields)
    if endpoint.reply is Reply.RATES:
        expected = {*RateListQuerySchema().fields, "metadata.<key>"}
    found = parameters_of(endpoint, "query")
    assert set(found) == expected
    assert not any(parameter.get("required") for parameter in found.values())


def test_free_metadata_are_an_exploded_object_of_strings() -> None:
    parameter = parameters_of(named("listRates"), "query")["metadata.<key>"]
    # `form`, the default of a query, is exploded unless it says otherwise.
    assert "explode" not in parameter
    schema = validator_of(parameter["schema"])
    assert schema.is_valid({"metadata.tier": "gold", "metadata.a.b": "1"})
    assert not schema.is_valid({"tier": "gold"})
    assert not schema.is_valid({"metadata.": "gold"})


@every_endpoint
def test_body_is_described_where_one_is_checked(endpoint: Endpoint) -> None:
    operation = operation_of(endpoint)
    assert ("requestBody" in operation) is (endpoint.check_body is not None)
    if endpoint.check_body is not None:
        assert operation["requestBody"]["required"] is True
        assert list(operation["requestBody"]["content"]) == ["application/json"]


def test_actions_are_told_apart_by_their_type() -> None:
    schema = operation_of(named("registerAction"))["requestBody"]["content"]["application/json"]
    assert schema["schema"]["discriminator"]["propertyName"] == "type"
    mapping = schema["schema"]["discriminator"]["mapping"]
    assert list(mapping) == list(ACTION_SCHEMAS)
    assert [{"$ref": target} for target in mapping.values()] == schema["schema"]["oneOf"]
    for kind, target in mapping.items():
        assert resolved({"$ref": target})["properties"]["type"]["enum"] == [kind]


TRADE = {"type": "trade", "username": "alice", "currency": "BTC", "amount": "-0.5"}
TRADE |= {"order_id": "o1", "ticker": "BTC-USD"}
TRANSFER = {"type": "transfer", "username": "alice", "currency": "BTC", "amount": "1"}
DEPOSIT = TRANSFER | {"type": "deposit"}
UPDATE = TRANSFER | {"type": "balance_update", "comment": "Rounding"}


ACCEPTED = (
    TRADE,
    TRADE | {"timestamp": "2024-01-28T21:12:00Z"},
    TRANSFER | {"wallet_address": "w"},
)
ACCEPTED += (TRANSFER | {"recepient_wallet_address": "w"}, DEPOSIT | {"status": "pending"})
ACCEPTED += (DEPOSIT | {"type": "withdrawal", "amount": "-1"}, UPDATE | {"amount": "0." + "1" * 37})
REFUSED = (TRANSFER, DEPOSIT | {"amount": "-1"}, DEPOSIT | {"type": "withdrawal"}, [])
REFUSED += tuple(UPDATE | {"comment": comment} for comment in ("  ", None, 1))
REFUSED += tuple(TRADE | {"amount": amount} for amount in (-0.5, "0.00", "1e3", "+1", "1" * 39))
REFUSED += tuple(TRADE | {name: "\n"} for name in ("type", "lp_id", "username", "timestamp"))


@pytest.mark.parametrize("action", [*ACCEPTED, *REFUSED])
def test_an_action_fits_the_document_exactly_if_the_gateway_accepts_it(action: Json) -> None:
    assert request_schema("registerAction").is_valid(action) is (action in ACCEPTED)
    assert accepts(check_action, action) is (action in ACCEPTED)


def accepts(check: Callable[[object], None], document: object) -> bool:
    try:
        check(document)
    except Violations:
        return False
    return True


RATE = {"baseInstrumentCode": "BRL", "counterInstrumentCode": "BTC", "source": "Chainlink"}
RATE |= {"amount": 10**38 - 1, "scale": 38}
FINE: tuple[Json, ...] = ({}, {"amount": 0}, {"status": {"code": "ACTIVE", "description": None}})
FINE += ({"metadata": {"a": 1, "b": 1.5, "c": True, "d": None, "e": "text"}},)
WRONG: tuple[Json, ...] = ({"id": "1"}, {"deletedAt": None}, {"scale": 39}, {"source": "s" * 201})
WRONG += tuple({"amount": amount} for amount in (10**38, -1, "1", 1.5, None))
WRONG += tuple({"status": status} for status in ({}, None, {"code": "A", "since": "today"}))
WRONG += tuple({"metadata": held} for held in ({"a": {}}, {"": 1}, {"k" * 101: 1}, None))
WRONG += ({"metadata": {"long": "v" * 2001}}, {"baseInstrumentCode": "brl"})


@pytest.mark.parametrize("change", [*FINE, *WRONG])
def test_a_rate_fits_the_document_exactly_if_the_gateway_accepts_it(change: Json) -> None:
    whole = RATE | change
    assert request_schema("createRate").is_valid(whole) is (change in FINE)
    assert accepts(check_rate, whole) is (change in FINE)
    assert request_schema("updateRate").is_valid(change) is (change in FINE)
    assert accepts(check_rate_patch, change) is (change in FINE)


def test_amount_of_a_rate_is_an_integer_of_38_digits_and_money_is_never_a_number() -> None:
    schemas = DOCUMENT["components"]["schemas"]
    for name in ("Rate", "RateCreate", "RatePatch"):
        amount = schemas[name]["properties"]["amount"]
        assert (amount["type"], amount["maximum"]) == ("integer", 10**38 - 1)
    for name in ("Row", "Trade", "Transfer", "Deposit", "Withdrawal", "BalanceUpdate"):
        amount = schemas[name]["properties"]["amount"]
        assert amount["type"] == "string"
        assert amount["pattern"]


# What is answered.


@every_endpoint
def test_success_has_the_status_and_message_of_the_table(endpoint: Endpoint) -> None:
    responses = operation_of(endpoint)["responses"]
    assert [status for status in responses if status < "3"] == [str(endpoint.status)]
    if endpoint.api is Api.LEDGER:
        content = success_of(endpoint)["content"]["application/json"]
        assert content["example"]["api_message"] == endpoint.message
        wrong = content["example"] | {"api_message": "LEDGER_SOMETHING_ELSE"}
        assert not validator_of(content["schema"]).is_valid(wrong)


@pytest.mark.parametrize(
    ("name", "data", "fits"),
    [
        ("listLedger", [], True),
        ("listLedger", {}, False),
        ("listPendingDeposits", {}, True),
        ("listPendingDeposits", [], False),
        ("registerAction", [], False),
    ],
)
def test_envelope_holds_what_the_route_answers(name: str, data: object, fits: bool) -> None:
    schema = validator_of(success_of(named(name))["content"]["application/json"]["schema"])
    body = {"api_message": named(name).message, "api_data": data}
    assert schema.is_valid(body) is fits


def test_row_may_have_types_and_fields_of_the_ledgers_own() -> None:
    row = {"id": "1", "username": "alice", "status": "pending", "currency": "BTC"}
    row |= {"amount": "-0.1", "timestamp": "2024-01-28T21:12:00Z", "type": "airdrop"}
    schema = validator_of({"$ref": "#/components/schemas/Row"})
    assert schema.is_valid(row)
    assert schema.is_valid(row | {"colour": [1, 2], "lp_id": None, "fee": "0.1"})
    assert not schema.is_valid(row | {"amount": -0.1})
    for name in row:
        assert not schema.is_valid({key: held for key, held in row.items() if key != name})


def test_rate_may_have_fields_of_the_ledgers_own() -> None:
    example = success_of(named("getRate"))["content"]["application/json"]["example"]
    schema = validator_of({"$ref": "#/components/schemas/Rate"})
    status = {"code": "ACTIVE", "description": None, "since": "today"}
    assert schema.is_valid(example | {"status": status, "spread": 3})
    assert not schema.is_valid(example | {"status": {}})


def test_a_deleted_rate_has_no_body() -> None:
    assert success_of(named("deleteRate"))["content"] == {}


@every_endpoint
def test_errors_are_those_that_the_route_can_give(endpoint: Endpoint) -> None:
    expected = set(READ_ERRORS)
    if endpoint.is_write:
        expected.add("409")
    if endpoint.check_body is not None:
        expected |= BODY_ERRORS
    responses = operation_of(endpoint)["responses"]
    not_modified = set() if endpoint.is_write else {"304"}
    assert set(responses) - {str(endpoint.status)} - not_modified == expected
    assert not_modified <= set(responses)


@every_endpoint
def test_errors_have_the_form_of_the_routes_api(endpoint: Endpoint) -> None:
    form = endpoint.api.error_body(NotReady("Wait.", fields={"a": "b"}), "request")
    for status, response in operation_of(endpoint)["responses"].items():
        if not status.startswith(("2", "3")):
            content = resolved(response)["content"]["application/json"]
            validator_of(content["schema"]).validate(form)


@every_endpoint
def test_bodies_against_a_rule_are_422_on_ledger_routes_and_400_on_rates_routes(
    endpoint: Endpoint,
) -> None:
    responses = operation_of(endpoint)["responses"]
    refused = {
        status: resolved(responses[status])["content"]["application/json"]["examples"]
        for status in responses.keys() & {"400", "422"}
    }
    assert ("INVALID_REQUEST" in refused["400"]) is (endpoint.api is Api.RATES)
    assert ("INVALID_ACTION" in refused.get("422", ())) is (endpoint.name == "registerAction")


@every_endpoint
def test_answers_name_their_headers(endpoint: Endpoint) -> None:
    operation = operation_of(endpoint)
    headers = {
        status: set(resolved(response)["headers"])
        for status, response in operation["responses"].items()
    }
    assert all("X-Request-Id" in found for found in headers.values())
    assert "WWW-Authenticate" in headers["401"]
    assert "Retry-After" in headers["429"]
    assert "Retry-After" in headers["503"]
    success = headers[str(endpoint.status)]
    assert ("Link" in success) is endpoint.is_list
    assert ("Idempotency-Replayed" in success) is endpoint.is_write
    # A 304 leads on from a page as the page itself does.
    assert headers.get("304", success) == success


def test_who_is_told_that_the_gateway_is_not_ready_is_told_when_to_ask_again() -> None:
    responses = DOCUMENT["paths"]["/health/ready"]["get"]["responses"]
    assert set(responses["503"]["headers"]) == {"X-Request-Id", "Retry-After"}


def test_the_headers_that_tell_of_a_limit_are_described() -> None:
    assert "`RateLimit`" in DOCUMENT["info"]["description"]
    assert "`RateLimit-Policy`" in DOCUMENT["info"]["description"]

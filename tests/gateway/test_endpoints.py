"""The table of endpoints: its paths and parameters, and the words in which it refuses."""

import dataclasses
import re
from itertools import combinations
from string import Formatter
from urllib.parse import quote, unquote
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.authz import Access
from gateway.endpoints import ENDPOINTS, Api, Endpoint, Reply, api_of, fill
from gateway.errors import Forbidden, InvalidAction, InvalidPath, InvalidRate, MalformedBody
from schemas.violations import Violations

ONE = {endpoint.name: endpoint for endpoint in ENDPOINTS}
USER, ORDER, RATE = ONE["listUser"], ONE["listOrder"], ONE["getRate"]

user_names = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._@+-]{0,63}", fullmatch=True)
order_ids = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,127}", fullmatch=True)


def names_in(template: str) -> set[str]:
    return {name for _, name, _, _ in Formatter().parse(template) if name}


def rate_path(organization: str, ledger: str, rate: str) -> str:
    return f"/v1/organizations/{organization}/ledgers/{ledger}/instrument-rates/{rate}"


# The table.


def test_no_two_endpoints_share_a_name_or_a_route() -> None:
    for one, other in combinations(ENDPOINTS, 2):
        assert one.name != other.name
        assert (one.method, one.path) != (other.method, other.path)


@pytest.mark.parametrize("endpoint", ENDPOINTS, ids=lambda one: one.name)
def test_an_endpoint_is_complete(endpoint: Endpoint) -> None:
    assert endpoint.roles
    assert names_in(endpoint.tag) <= names_in(endpoint.path)
    assert endpoint.username_required == (endpoint.api is Api.LEDGER)
    assert bool(endpoint.message) == (endpoint.api is Api.LEDGER)
    assert bool(endpoint.check_body) == (endpoint.method in ("POST", "PATCH"))
    assert endpoint.is_write == (endpoint.method != "GET")
    assert endpoint.is_list == (endpoint.reply is Reply.ROWS)
    assert endpoint.status == {"POST": 201, "DELETE": 204}.get(endpoint.method, 200)


@pytest.mark.parametrize("endpoint", ENDPOINTS, ids=lambda one: one.name)
def test_every_parameter_of_a_path_has_a_rule(endpoint: Endpoint) -> None:
    for name in names_in(endpoint.path):
        bad = endpoint.path.replace(f"{{{name}}}", "%00")
        others = dict.fromkeys(names_in(bad), "00000000-0000-0000-0000-000000000000")
        with pytest.raises(InvalidPath):
            endpoint.params(fill(bad, others))


def test_where_a_user_sees_own_rows_the_path_is_theirs_or_the_list_is_mixed() -> None:
    for endpoint in ENDPOINTS:
        if Access.OWN_ROWS in endpoint.roles.values():
            assert endpoint.is_list
        if Access.OWN_NAME in endpoint.roles.values():
            assert "username" in names_in(endpoint.path)
        if endpoint.own_path is not None:
            assert names_in(endpoint.own_path) == {"username"}


def test_an_endpoint_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        USER.path = "/"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("path", "api"),
    [
        ("/ledger", Api.LEDGER),
        ("/", Api.LEDGER),
        ("", Api.LEDGER),
        ("/v1", Api.LEDGER),
        ("/v10/x", Api.LEDGER),
        ("/v1/", Api.RATES),
        ("/v1/organizations/x", Api.RATES),
    ],
)
def test_a_path_that_is_no_route_belongs_to_an_api_all_the_same(path: str, api: Api) -> None:
    assert api_of(path) is api


def test_every_route_is_refused_in_the_form_of_its_own_api() -> None:
    for endpoint in ENDPOINTS:
        assert api_of(endpoint.path) is endpoint.api


def test_each_api_has_its_form_of_error() -> None:
    error = Forbidden("No.", fields={"a": "b"})
    assert Api.LEDGER.error_body(error, "id-1") == {
        "api_message": "FORBIDDEN",
        "api_data": {
            "detail": "No.",
            "origin": "gateway",
            "request_id": "id-1",
            "errors": {"a": "b"},
        },
    }
    assert Api.RATES.error_body(error, "id-1") == {
        "code": "0043",
        "title": "Forbidden",
        "message": "No.",
        "requestId": "id-1",
        "origin": "gateway",
        "fields": {"a": "b"},
    }


# Path parameters.


@given(user_names, st.booleans())
def test_a_user_name_is_read_however_it_is_encoded(name: str, all_of_it: bool) -> None:
    raw = "".join(f"%{ord(char):02x}" for char in name) if all_of_it else quote(name, safe="")
    assert USER.params(f"/ledger/{raw}") == {"username": name}


@given(order_ids)
def test_an_order_id_is_read_as_it_is(order_id: str) -> None:
    assert ORDER.params(f"/ledger/order/{quote(order_id)}") == {"order_id": order_id}


@given(st.text("abcAB09%.0a;@:+-_~é\0 {}", max_size=12))
def test_whatever_stands_there_is_refused_or_is_a_plain_name(text: str) -> None:
    for endpoint, prefix in ((USER, "/ledger/"), (ORDER, "/ledger/order/")):
        try:
            (value,) = endpoint.params(prefix + quote(text, safe="%;@:+~{}")).values()
        except InvalidPath:
            continue
        assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._@+:-]*", value)


@pytest.mark.parametrize(
    "raw",
    [
        *("", ".", "..", "%2e", "%2e%2e", ".a", "-a", "_a", "@a", "+a", "a%2fb", "..%2fadmin"),
        *("a%5cb", "a%00", "%00", "a%0a", "a%0d%0aX", "a%20", "%20a", "a+b%20", "a%3Fb=c", "a%23f"),
        *("a;x=1", "a%3Bx=1", "a,b", "a*", "a~", "a!", "a$", "a&b", "a=b", "a'", "a:b", "(a)"),
        *(
            "%2561lice",
            "%C0%AE",
            "%FF",
            "%C3%A9",
            "%EF%BD%81",
            "%e2%80%8ba",
            "%u0061",
            "%6",
            "%",
            "%zz",
        ),
        *("{username}", "%7Busername%7D", "a" * 65, "%61" * 65, "a%", "a%E9"),
    ],
)
def test_a_user_name_outside_its_alphabet_is_refused(raw: str) -> None:
    with pytest.raises(InvalidPath) as refusal:
        USER.params(f"/ledger/{raw}")
    assert set(refusal.value.fields) == {"username"}


@pytest.mark.parametrize("raw", ["a@b", "a+b", "..", ":a", "a%2Fb", "a" * 129, "a%0a", "", "a%20b"])
def test_an_order_id_outside_its_alphabet_is_refused(raw: str) -> None:
    with pytest.raises(InvalidPath) as refusal:
        ORDER.params(f"/ledger/order/{raw}")
    assert set(refusal.value.fields) == {"order_id"}


def test_the_longest_names_are_accepted() -> None:
    assert USER.params("/ledger/" + "a" * 64) == {"username": "a" * 64}
    assert ORDER.params("/ledger/order/" + "a" * 128) == {"order_id": "a" * 128}


@given(st.tuples(st.uuids(), st.uuids(), st.uuids()))
def test_an_id_in_upper_case_is_the_same_id(ids: tuple[UUID, UUID, UUID]) -> None:
    lower = [str(one) for one in ids]
    wanted = dict(zip(("organization_id", "ledger_id", "id"), lower, strict=True))
    assert RATE.params(rate_path(*lower)) == wanted
    assert RATE.params(rate_path(*(one.upper() for one in lower))) == wanted


ID = "5f3a4c55-8b28-4276-bed7-f7c8a4bb44e8"


@pytest.mark.parametrize(
    "spelling",
    [
        ID.replace("-", ""),
        f"{{{ID}}}",
        f"%7B{ID}%7D",
        f"urn:uuid:{ID}",
        f"urn%3Auuid%3A{ID}",
        ID[:-1],
        f"{ID}0",
        f"{ID}%0a",
        f"%20{ID}",
        ID.replace("-", "_"),
        ID.replace("5", "%EF%BC%95"),
        ID.replace("f", "g"),
        "5f3a4c558b28-4276-bed7-f7c8-a4bb44e8",
        "1",
        "..",
        "null",
    ],
)
def test_an_id_in_another_spelling_is_refused(spelling: str) -> None:
    for position, name in enumerate(("organization_id", "ledger_id", "id")):
        ids = [ID, ID, ID]
        ids[position] = spelling
        with pytest.raises(InvalidPath) as refusal:
            RATE.params(rate_path(*ids))
        assert set(refusal.value.fields) == {name}
        assert refusal.value.midaz_code == "0065"


# Paths for the ledger.


@given(user_names)
def test_a_filled_path_has_the_segments_of_its_template(name: str) -> None:
    path = fill("/ledger/users/{username}/deposits", {"username": name})
    assert path.split("/")[:3] == ["", "ledger", "users"]
    assert path.split("/")[4:] == ["deposits"]
    assert unquote(path.split("/")[3]) == name
    assert not set(path) & set("?#;\\ @+&")


@given(st.text())
def test_whatever_a_parameter_holds_it_stays_one_segment(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        return
    path = fill("/a/{x}/b", {"x": text})
    assert path.isascii()
    assert [unquote(part) for part in path.split("/")] == ["", "a", text, "b"]
    assert not set(path) & set("?#;\\ \r\n\0")


# The words of a refusal.


def test_a_broken_rule_of_an_action_is_an_invalid_action() -> None:
    error = ONE["registerAction"].refuse(Violations(missing=["amount"], invalid={"type": "bad"}))
    assert isinstance(error, InvalidAction)
    assert (error.status, error.fields) == (422, {"amount": "is required", "type": "bad"})


@pytest.mark.parametrize("name", ["createRate", "updateRate"])
@pytest.mark.parametrize(
    ("violations", "code"),
    [
        (Violations(unexpected=["id"], missing=["amount"], invalid={"scale": "bad"}), "0053"),
        (Violations(missing=["amount"], invalid={"scale": "bad"}), "0009"),
        (Violations(invalid={"scale": "bad"}), "0047"),
    ],
)
def test_a_broken_rule_of_a_rate_has_the_code_of_its_kind(
    name: str, violations: Violations, code: str
) -> None:
    error = ONE[name].refuse(violations)
    assert isinstance(error, InvalidRate)
    assert (error.status, error.midaz_code) == (400, code)
    assert error.fields == violations.reasons()


def test_a_key_that_stands_twice_is_named() -> None:
    action = ONE["registerAction"].refuse_duplicate("amount")
    rate = ONE["createRate"].refuse_duplicate("amount")
    assert isinstance(action, InvalidAction)
    assert isinstance(rate, MalformedBody)
    assert set(action.fields) == set(rate.fields) == {"amount"}
    assert (action.status, rate.status, rate.midaz_code) == (422, 400, "0094")

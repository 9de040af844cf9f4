"""Roles, and which rows and fields a principal may see."""

from itertools import product

import pytest

from gateway.authz import ROLES, Access, Principal, Role, View, may, own_name, view_of
from gateway.errors import Forbidden

HIDDEN = frozenset({"lp_id", "lp_name", "created_by_id"})


def principal(role: Role, username: str = "alice") -> Principal:
    return Principal(username, role, expires_at=2e9)


def test_there_are_three_roles_and_admin_is_the_strongest() -> None:
    assert list(ROLES) == ["user", "service", "admin"]
    assert Role.USER < Role.SERVICE < Role.ADMIN
    assert max(Role) is Role.ADMIN


def test_a_label_is_the_name_that_tokens_carry() -> None:
    assert {role.label: role for role in Role} == ROLES


@pytest.mark.parametrize(("role", "access"), list(product(Role, Access)))
def test_a_role_gets_the_access_that_it_was_given(role: Role, access: Access) -> None:
    assert may(principal(role), {role: access}) is access


@pytest.mark.parametrize("role", Role)
def test_a_role_that_was_given_nothing_gets_nothing(role: Role) -> None:
    others = {other: Access.ALL for other in Role if other is not role}
    with pytest.raises(Forbidden):
        may(principal(role), others)


@pytest.mark.parametrize(
    "name", ["bob", "Alice", "ALICE", "alice ", " alice", "", None, "alic", "alicee", "\uff41lice"]
)
def test_own_name_is_exactly_ones_own(name: str | None) -> None:
    own_name(principal(Role.USER), Access.OWN_NAME, "alice")
    with pytest.raises(Forbidden):
        own_name(principal(Role.USER), Access.OWN_NAME, name)


@pytest.mark.parametrize("access", [Access.ALL, Access.OWN_ROWS])
@pytest.mark.parametrize("name", ["bob", None])
def test_where_the_path_does_not_decide_any_name_will_do(access: Access, name: str | None) -> None:
    own_name(principal(Role.USER), access, name)


@pytest.mark.parametrize("role", Role)
def test_no_role_lifts_the_rule_of_the_own_name(role: Role) -> None:
    with pytest.raises(Forbidden):
        own_name(principal(role), Access.OWN_NAME, "bob")


def test_a_user_sees_their_own_rows_without_the_internal_fields() -> None:
    assert view_of(principal(Role.USER, "bob"), HIDDEN) == View("bob", HIDDEN, ambiguous=False)


def test_a_service_sees_every_row_that_has_one_owner() -> None:
    assert view_of(principal(Role.SERVICE), HIDDEN) == View(None, frozenset(), ambiguous=False)


def test_an_admin_sees_all_of_it() -> None:
    assert view_of(principal(Role.ADMIN), HIDDEN) == View(None, frozenset(), ambiguous=True)


@pytest.mark.parametrize(
    ("value", "name"),
    [(principal(Role.USER), "username"), (view_of(principal(Role.USER), HIDDEN), "owner")],
    ids=["who", "view"],
)
def test_what_was_decided_cannot_be_changed(value: Principal | View, name: str) -> None:
    before = getattr(value, name)
    with pytest.raises(AttributeError):
        setattr(value, name, "mallory")
    assert getattr(value, name) == before

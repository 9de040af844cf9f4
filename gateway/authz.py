"""Roles, and which rows and fields a principal may see. Pure; no I/O."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum, StrEnum
from functools import cached_property

import msgspec

from gateway.errors import Forbidden


class Role(IntEnum):
    """The three roles; a stronger one compares greater."""

    USER = 1
    SERVICE = 2
    ADMIN = 3

    @cached_property
    def label(self) -> str:
        """The name a token carries."""
        return self.name.lower()


ROLES = {role.label: role for role in Role}


class Access(StrEnum):
    """How much of a route a role gets."""

    ALL = "all"
    OWN_ROWS = "own rows"
    OWN_NAME = "own name only"


@dataclass(frozen=True, slots=True)
class Principal:
    """Who asks: a verified user name and role, and the token that says so.

    `expires_at` and `issued_at` are in seconds since the epoch; `token_id` is its `jti`.
    """

    username: str
    role: Role
    expires_at: float
    issued_at: float | None = None
    token_id: str | None = None


class View(msgspec.Struct, frozen=True):
    """What of a reply may be shown.

    `owner` is the only user name whose rows pass (None: everybody's); `hidden` are fields taken out
    of each row; rows whose owner is ambiguous pass only where `ambiguous` is true.
    """

    owner: str | None
    hidden: frozenset[str]
    ambiguous: bool


def may(principal: Principal, roles: Mapping[Role, Access]) -> Access:
    """The access that an endpoint gives the principal's role; `Forbidden` if it gives none."""
    access = roles.get(principal.role)
    if access is None:
        raise Forbidden("Your role may not do this.")
    return access


def own_name(principal: Principal, access: Access, username: str | None) -> None:
    """`Forbidden` if only one's own name may stand in the path and another's does."""
    if access is Access.OWN_NAME and username != principal.username:
        raise Forbidden("These are somebody else's data.")


def view_of(principal: Principal, hidden_fields: frozenset[str]) -> View:
    """The rows and fields a principal may see, whatever the ledger sent."""
    if principal.role is Role.USER:
        return View(owner=principal.username, hidden=hidden_fields, ambiguous=False)
    return View(owner=None, hidden=frozenset(), ambiguous=principal.role is Role.ADMIN)

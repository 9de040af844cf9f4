"""What is wrong with a document or a query, and how a schema finds it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

from marshmallow import Schema, ValidationError, fields
from marshmallow.exceptions import SCHEMA

from schemas.strict_json import shown

MAX_REASONS = 20
BODY = "body"
UNEXPECTED = "is not expected"
# marshmallow knows kinds of error only by their message: this one marks a missing field.
REQUIRED = "is required"
NOT_AN_OBJECT = "must be a JSON object"


class Violations(Exception):
    """The rules a well-formed document or query breaks, by field.

    `unexpected` and `missing` are field names, `invalid` maps a name to one reason in our own
    words. Names of nested fields are dotted (`status.code`). At most 20 of each are kept, every
    name is printable and at most 64 characters, and no value from outside is ever quoted.
    """

    def __init__(
        self,
        *,
        unexpected: Iterable[str] = (),
        missing: Iterable[str] = (),
        invalid: Mapping[str, str] | None = None,
    ) -> None:
        self.unexpected = tuple(map(shown, islice(unexpected, MAX_REASONS)))
        self.missing = tuple(map(shown, islice(missing, MAX_REASONS)))
        reasons = islice((invalid or {}).items(), MAX_REASONS)
        self.invalid = {shown(name): reason for name, reason in reasons}
        super().__init__("; ".join(f"{name} {why}" for name, why in self.reasons().items()))

    def reasons(self) -> dict[str, str]:
        """Field name to reason: unexpected, then missing, then invalid; at most 20 entries."""
        merged = dict.fromkeys(self.unexpected, UNEXPECTED)
        merged |= dict.fromkeys(self.missing, REQUIRED)
        merged |= self.invalid
        return dict(islice(merged.items(), MAX_REASONS))


def load(schema: Schema, document: object) -> dict[str, Any]:
    """`document` as `schema` loads it. Raises Violations, naming everything that is wrong.

    A document that is not an object is an invalid field `body`.
    """
    if not isinstance(document, dict):
        raise Violations(invalid={BODY: NOT_AN_OBJECT})
    known, unexpected = _split(schema, document)
    messages: dict[str, str] = {}
    loaded: dict[str, Any] = {}
    try:
        loaded = schema.load(known)
    except ValidationError as error:
        messages = dict(_flat(error.messages_dict))
    if unexpected or messages:
        missing = [name for name, why in messages.items() if why == REQUIRED]
        invalid = {name: why for name, why in messages.items() if why != REQUIRED}
        raise Violations(unexpected=unexpected, missing=missing, invalid=invalid)
    return loaded


def _split(
    schema: Schema, document: Mapping[str, Any], prefix: str = ""
) -> tuple[dict[str, Any], list[str]]:
    """The part of `document` that `schema` knows, and the first names that it does not.

    marshmallow writes a message for every unknown field: tens of thousands would block the loop.
    """
    expected = {field.data_key or name: field for name, field in schema.load_fields.items()}
    strangers = (prefix + name for name in document if name not in expected)
    unexpected = list(islice(strangers, MAX_REASONS))
    known: dict[str, Any] = {}
    for name, field in expected.items():
        if name not in document:
            continue
        known[name] = document[name]
        if isinstance(field, fields.Nested) and isinstance(known[name], dict):
            known[name], inner = _split(field.schema, known[name], f"{prefix}{name}.")
            unexpected += inner
    return known, unexpected


def _flat(messages: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """(dotted name, first message) of marshmallow's tree of messages."""
    for name, found in messages.items():
        path = prefix[:-1] if name == SCHEMA else prefix + name
        if isinstance(found, dict):
            yield from _flat(found, f"{path}.")
        else:
            yield path, str(found[0])

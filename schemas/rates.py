"""Instrument rates as they come in, and as the API document describes the replies."""

from __future__ import annotations

from marshmallow import INCLUDE, Schema, fields

from schemas.fields import (
    MAX_AMOUNT,
    MAX_SCALE,
    MESSAGES,
    ExactInteger,
    Metadata,
    description,
    instrument_code,
    text,
)
from schemas.violations import NOT_AN_OBJECT, load

MAX_SOURCE = 200


class StatusSchema(Schema):
    """A rate's status."""

    # marshmallow copies it for each instance.
    error_messages = {"type": NOT_AN_OBJECT}  # noqa: RUF012

    code = text(100, required=True)
    description = description(256)


class RateCreateSchema(Schema):
    """The body of `POST …/instrument-rates`; its value is amount × 10^-scale."""

    baseInstrumentCode = instrument_code(required=True)
    counterInstrumentCode = instrument_code(required=True)
    amount = ExactInteger(MAX_AMOUNT, required=True)
    scale = ExactInteger(MAX_SCALE, required=True)
    source = text(MAX_SOURCE, required=True)
    status = fields.Nested(StatusSchema, error_messages=MESSAGES)
    metadata = Metadata()


class RatePatchSchema(Schema):
    """The body of `PATCH …/instrument-rates/{id}`: any of the create fields, or none."""

    baseInstrumentCode = instrument_code()
    counterInstrumentCode = instrument_code()
    amount = ExactInteger(MAX_AMOUNT)
    scale = ExactInteger(MAX_SCALE)
    source = text(MAX_SOURCE)
    status = fields.Nested(StatusSchema, error_messages=MESSAGES)
    metadata = Metadata()


_CREATE = RateCreateSchema()
_PATCH = RatePatchSchema()


def check_rate(document: object) -> None:
    """Raises Violations unless `document`, a parsed JSON value, may create a rate."""
    load(_CREATE, document)


def check_rate_patch(document: object) -> None:
    """Raises Violations unless `document`, a parsed JSON value, may change a rate.

    `id`, `organizationId`, `ledgerId` and the three dates are unexpected.
    """
    load(_PATCH, document)


class RateSchema(Schema):
    """A rate as it is served. Dates are as the ledger writes them."""

    class Meta:
        unknown = INCLUDE

    id = fields.UUID(required=True)
    organizationId = fields.UUID(required=True)
    ledgerId = fields.UUID(required=True)
    baseInstrumentCode = instrument_code(required=True)
    counterInstrumentCode = instrument_code(required=True)
    amount = ExactInteger(MAX_AMOUNT, required=True)
    scale = ExactInteger(MAX_SCALE, required=True)
    source = fields.String()
    status = fields.Nested(StatusSchema, required=True)
    metadata = Metadata()
    createdAt = fields.String()
    updatedAt = fields.String()
    deletedAt = fields.String(allow_none=True)


class RateErrorSchema(Schema):
    """An error on a rates route: Midaz's form, and who says so in which request."""

    code = fields.String(required=True, metadata={"example": "0047"})
    title = fields.String(required=True)
    message = fields.String(required=True)
    # Not called `fields`: that is marshmallow's own attribute.
    field_reasons = fields.Dict(
        keys=fields.String(),
        values=fields.String(),
        data_key="fields",
        metadata={"description": "field name to reason"},
    )
    requestId = fields.String(required=True)
    origin = fields.String(required=True, metadata={"enum": ["gateway", "ledger"]})

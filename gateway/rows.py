"""Slices rows out of a ledger body without touching their bytes.

A row leaves as the bytes it came in; taking a hidden member out is
the one edit. `msgspec.Raw` checks the grammar of what it skips, but neither UTF-8 nor the length of
numbers, so both are checked here: no body that a strict reader refuses is passed on.
"""

import asyncio
import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TypeVar

import msgspec

from gateway.authz import View
from gateway.members import STRING, members, name_of, without
from gateway.pieces import PIECE, Uncut, pieces

# Readers commonly refuse longer numbers (CPython: 4300 digits); no row this short can hold one.
MAX_NUMBER = 1000

T = TypeVar("T")

_ABSENT = msgspec.Raw()
_strings = re.compile(STRING, re.DOTALL)
_long_number = re.compile(rb"[-+.eE0-9]{%d}" % (MAX_NUMBER + 1))


class UnreadableBody(ValueError):
    """The body is not the rows, object or array it should be."""


class Row(msgspec.Struct, frozen=True, gc=False):
    """One row: the ledger's own bytes, and whose it is (None: not said, or said twice)."""

    raw: bytes
    owner: str | None


@dataclass(slots=True)
class RowIndex:
    """The rows of a reply in their order, and the same by owner."""

    rows: list[Row] = field(default_factory=list)
    by_owner: defaultdict[str | None, list[Row]] = field(default_factory=lambda: defaultdict(list))

    def add(self, found: Iterable[Row]) -> None:
        """Puts rows behind those that are there."""
        for row in found:
            self.rows.append(row)
            self.by_owner[row.owner].append(row)

    def seen(self, view: View) -> list[Row]:
        """The rows that a view may see."""
        if view.owner is not None:
            return self.by_owner.get(view.owner, [])
        if view.ambiguous or None not in self.by_owner:
            return self.rows
        return [row for row in self.rows if row.owner is not None]


class _Envelope(msgspec.Struct):
    api_data: msgspec.Raw


class _Owned(msgspec.Struct):
    username: str


class _Identified(msgspec.Struct):
    id: msgspec.Raw


class _Rate(msgspec.Struct):
    """A rate's `id`, and the members that errors, rows and envelopes have and rates have not."""

    id: msgspec.Raw = _ABSENT
    code: msgspec.Raw = _ABSENT
    message: msgspec.Raw = _ABSENT
    error: msgspec.Raw = _ABSENT
    username: msgspec.Raw = _ABSENT
    api_data: msgspec.Raw = _ABSENT


_envelope = msgspec.json.Decoder(_Envelope)
_array = msgspec.json.Decoder(list[msgspec.Raw])
_owned = msgspec.json.Decoder(_Owned)
_all_owned = msgspec.json.Decoder(list[_Owned])
_identified = msgspec.json.Decoder(_Identified)
_rate = msgspec.json.Decoder(_Rate)
_rates = msgspec.json.Decoder(list[_Rate])


async def read_rows(body: bytes) -> RowIndex:
    """The rows of a list reply, an envelope or a bare array. Raises `UnreadableBody`.

    Others get their turn in between, however many rows there are.
    """
    index = RowIndex()
    try:
        for piece, raws in pieces(body):
            index.add(_batch(piece, raws))
            if len(body) > PIECE:
                await asyncio.sleep(0)
    except Uncut:
        index = RowIndex()
        index.add(_rows(_payload(body, bare=b"[")))
    return index


def _batch(array: bytes, raws: list[msgspec.Raw]) -> list[Row]:
    """The rows of an array. Where nothing is ambiguous, their owners are read at one go."""
    array = _checked_text(array)
    if b"\\" in array or array.count(b'"username"') != len(raws):
        return [_row(bytes(raw)) for raw in raws]
    try:
        owned = _all_owned.decode(array)
    except msgspec.ValidationError:
        return [_row(bytes(raw)) for raw in raws]
    if len(array) > MAX_NUMBER and max(map(len, raws)) > MAX_NUMBER:
        _check_numbers(array)
    return [Row(bytes(raw), one.username) for raw, one in zip(raws, owned, strict=True)]


def read_groups(body: bytes) -> list[tuple[bytes, RowIndex]]:
    """The groups of a deposits reply, enveloped: (currency, as the JSON string it was; its rows).

    Raises `UnreadableBody`.
    """
    payload = _payload(body)
    if not payload.startswith(b"{"):
        raise UnreadableBody("not an object of arrays")
    groups = []
    for key, _, value, end in members(payload):
        index = RowIndex()
        index.add(_rows(payload[value:end].strip()))
        groups.append((key, index))
    return groups


def read_row(body: bytes) -> bytes:
    """What a reply to a registered action holds: one row, alone or in an array, enveloped or bare.

    Raises `UnreadableBody`.
    """
    payload = _payload(body, bare=b"[")
    if payload.startswith(b"["):
        if len(_rows(payload)) != 1:
            raise UnreadableBody("not one row")
    else:
        _row(payload)
    return payload


def read_rate(body: bytes) -> bytes:
    """The one rate of a reply, unchanged. Raises `UnreadableBody`, also for an error instead."""
    text, rate = _value(body, _rate)
    _check_rates([rate])
    return text


def read_rates(body: bytes) -> bytes:
    """The array of rates of a reply, unchanged. Raises `UnreadableBody`."""
    text, rates = _value(body, _rates)
    _check_rates(rates)
    return text


def shown(rows: list[Row], hidden: frozenset[str]) -> list[bytes]:
    """The bytes of the rows, each without its hidden fields."""
    return [without(row.raw, hidden) for row in rows] if hidden else [row.raw for row in rows]


def identity(row: Row) -> bytes:
    """What tells the row from others: its `id` as the ledger wrote it, or all of it without one."""
    try:
        return bytes(_identified.decode(row.raw).id)
    except msgspec.ValidationError:
        return row.raw


def _value(body: bytes, kind: msgspec.json.Decoder[T]) -> tuple[bytes, T]:
    """A JSON text, and what a decoder reads in it."""
    text = _checked_text(body)
    value = _decode(kind, text)
    _check_numbers(text)
    return text, value


def _check_rates(rates: list[_Rate]) -> None:
    """Ledgers leave fields of a rate out; what has no id and speaks like something else is none."""
    for rate in rates:
        others = rate.code or rate.message or rate.error or rate.username or rate.api_data
        if others and not rate.id:
            raise UnreadableBody("something else in a rate's place")


def _rows(array: bytes) -> list[Row]:
    return [_row(bytes(raw)) for raw in _decode(_array, array)]


def _row(raw: bytes) -> Row:
    if not raw.startswith(b"{"):
        raise UnreadableBody("a row is not an object")
    if len(raw) > MAX_NUMBER:
        _check_numbers(raw)
    return Row(raw, _owner(raw))


def _owner(raw: bytes) -> str | None:
    """The row's one `username`; a row with an escape or a second mention needs a closer look."""
    try:
        owner = _owned.decode(raw).username
    except msgspec.ValidationError:
        return None
    if raw.count(b'"username"') == 1 and b"\\" not in raw:
        return owner
    return owner if [name_of(key) for key, *_ in members(raw)].count("username") == 1 else None


def _payload(body: bytes, bare: bytes | None = None) -> bytes:
    """The JSON text that the envelope holds, or the body's own if it begins with `bare`."""
    text = _checked_text(body)
    if bare is not None and text.startswith(bare):
        return text
    return bytes(_decode(_envelope, text).api_data)


def _checked_text(body: bytes) -> bytes:
    try:
        if not body.isascii():
            body.decode()
    except UnicodeDecodeError as error:
        raise UnreadableBody("not UTF-8") from error
    return body.strip(b" \t\r\n")


def _check_numbers(text: bytes) -> None:
    if _long_number.search(_strings.sub(b"", text)):
        raise UnreadableBody("a number is too long")


def _decode(decoder: msgspec.json.Decoder[T], text: bytes) -> T:
    try:
        return decoder.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UnreadableBody("not the JSON it should be") from error

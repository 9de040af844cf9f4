"""Slices rows out of a ledger body without touching their bytes.

A row leaves as the bytes it came in; taking a hidden member out is the one edit. Rows are read
once, for whose they are, and cut out of their text for those who see them. msgspec checks the
grammar of what it skips, but neither UTF-8 nor the length of numbers, so both are checked here: no
body that a strict reader refuses is passed on.
"""

import asyncio
from collections.abc import Callable, Iterable
from typing import TypeVar

import msgspec

from gateway.batches import Batch, RowIndex
from gateway.members import each_without, values
from gateway.pieces import PIECE, Piece, Uncut, pieces, pieces_of_groups
from gateway.strictness import has_long_number, is_utf8

# So many groups of rows are handled at a time.
_GROUPS = 200

T = TypeVar("T")

_ABSENT = msgspec.Raw()


class UnreadableBody(ValueError):
    """The body is not the rows, object or array it should be."""


class _Said:
    """Stands where a user's name was read."""


class _Owned(msgspec.Struct, gc=False):
    username: _Said


class _Envelope(msgspec.Struct):
    api_data: msgspec.Raw


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
_one = msgspec.json.Decoder(tuple[msgspec.Raw])
# The names that a decoder came upon: a name that is said twice is here twice.
_names: list[str] = []
_SAID = _Said()


def _note(_kind: type, name: object) -> _Said:
    if type(name) is not str:
        raise TypeError("not a name")
    _names.append(name)
    return _SAID


_owned = msgspec.json.Decoder(_Owned, dec_hook=_note)
_all_owned = msgspec.json.Decoder(list[_Owned], dec_hook=_note)
_identified = msgspec.json.Decoder(_Identified)
_rate = msgspec.json.Decoder(_Rate)
_rates = msgspec.json.Decoder(list[_Rate])


async def read_rows(body: bytes) -> RowIndex:
    """The rows of a list reply, an envelope or a bare array. Raises `UnreadableBody`.

    Others get their turn in between, however many rows there are.
    """
    try:
        return await _index(body)
    except Uncut:
        # Not in the usual envelope: it may still hold an array.
        array = _payload(body, bare=b"[")
    return await _rows_of(array)


async def _rows_of(array: bytes) -> RowIndex:
    try:
        return await _index(array)
    except Uncut as error:
        raise UnreadableBody("not a list of rows") from error


async def _index(text: bytes) -> RowIndex:
    """The rows in their places where the text is long; of a short one no more is kept than they."""
    place = bytes if len(text) <= PIECE else memoryview
    found = await _in_turns(text, _owners)
    return RowIndex(tuple([Batch(place(part), owners) for owners, part in found]))


async def _in_turns(text: bytes, read: Callable[[bytes], T]) -> list[Piece[T]]:
    found = []
    for piece in pieces(text, read):
        found.append(piece)
        if len(text) > PIECE:
            await asyncio.sleep(0)
    return found


async def read_groups(body: bytes) -> list[tuple[bytes, RowIndex]]:
    """The groups of a deposits reply, enveloped: (currency, as the JSON string it was; its rows).

    Raises `UnreadableBody`. Others get their turn in between.
    """
    groups = []
    try:
        for found in pieces_of_groups(_payload(body), lambda text: list(values(text))):
            for key, array in found.value:
                if not array.startswith(b"["):
                    raise UnreadableBody("not an object of arrays")
                groups.append((key, await _rows_of(array)))
                if len(groups) % _GROUPS == 0:
                    await asyncio.sleep(0)
    except Uncut as error:
        raise UnreadableBody("not an object of arrays") from error
    return groups


def read_row(body: bytes) -> bytes:
    """What a reply to a registered action holds: one row, alone or in an array, enveloped or bare.

    Raises `UnreadableBody`.
    """
    payload = _payload(body, bare=b"[")
    array = payload if payload.startswith(b"[") else b"[%b]" % payload
    # This decoder stops at a second row, however many follow.
    _decoded(_one.decode, array)
    _decoded(_owners, array)
    return payload


def read_rate(body: bytes) -> bytes:
    """The one rate of a reply, unchanged. Raises `UnreadableBody`, also for an error instead."""
    text = _checked_text(body)
    _check_rates([_decoded(_rate.decode, text)])
    _check_numbers(text)
    return text


async def read_rates(body: bytes) -> bytes:
    """The array of rates of a reply, unchanged, read in turns. Raises `UnreadableBody`."""
    text = _checked_text(body)
    if not text.startswith(b"["):
        raise UnreadableBody("not an array")
    try:
        await _in_turns(text, _check_array_of_rates)
    except Uncut as error:
        raise UnreadableBody("not an array of rates") from error
    return text


def rows_in(value: object) -> int:
    """How many rows there are in what was read of a reply, rows or groups of them."""
    if isinstance(value, RowIndex):
        return len(value)
    groups = value if isinstance(value, list) else []
    return sum([len(batch.owners) for _, index in groups for batch in index.batches])


def shown(rows: Iterable[bytes], hidden: frozenset[str]) -> bytes:
    """The rows with commas between, each without its hidden fields."""
    return each_without(list(rows), hidden) if hidden else b",".join(rows)


def identity(row: bytes) -> bytes:
    """What tells the row from others: its `id` as the ledger wrote it, or all of it without one."""
    try:
        return bytes(_identified.decode(row).id)
    except msgspec.ValidationError:
        return row


def _check_array_of_rates(array: bytes) -> None:
    _check_rates(_rates.decode(array))
    _check_numbers(array)


def _check_rates(rates: list[_Rate]) -> None:
    """Ledgers leave fields of a rate out; what has no id and speaks like something else is none."""
    for rate in rates:
        others = rate.code or rate.message or rate.error or rate.username or rate.api_data
        if others and not rate.id:
            raise UnreadableBody("something else in a rate's place")


def _owners(array: bytes) -> tuple[str | None, ...]:
    """Whose the rows of an array are. Raises `UnreadableBody`, and what decoders raise for what is
    none.
    """
    _check_utf8(array)
    _names.clear()
    try:
        said_once = len(_all_owned.decode(array)) == len(_names)
    except msgspec.ValidationError:
        said_once = False
    rows = [] if said_once else _array.decode(array)
    owners = tuple(_names) if said_once else tuple(_owner(bytes(row)) for row in rows)
    _check_numbers(array)
    if owners and owners[0] == owners[-1] and owners.count(owners[0]) == len(owners):
        # One name for all rows, instead of one for each.
        owners = owners[:1] * len(owners)
    return owners


def _owner(row: bytes) -> str | None:
    if not row.startswith(b"{"):
        raise UnreadableBody("a row is not an object")
    _names.clear()
    try:
        _owned.decode(row)
    except msgspec.ValidationError:
        return None
    return _names[0] if len(_names) == 1 else None


def _payload(body: bytes, bare: bytes | None = None) -> bytes:
    """The JSON text that the envelope holds, or the body's own if it begins with `bare`."""
    text = _checked_text(body)
    if bare is not None and text.startswith(bare):
        return text
    return bytes(_decoded(_envelope.decode, text).api_data)


def _checked_text(body: bytes) -> bytes:
    _check_utf8(body)
    return body.strip(b" \t\r\n")


def _check_utf8(text: bytes) -> None:
    if not is_utf8(text):
        raise UnreadableBody("not UTF-8")


def _check_numbers(text: bytes) -> None:
    if has_long_number(text):
        raise UnreadableBody("a number is too long")


def _decoded(decode: Callable[[bytes], T], text: bytes) -> T:
    try:
        return decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UnreadableBody("not the JSON it should be") from error

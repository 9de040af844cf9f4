"""What strict readers of JSON refuse and msgspec passes over. Pure; no I/O."""

import re

from gateway.members import STRING

# Readers commonly refuse longer numbers (CPython: 4300 digits).
MAX_NUMBER = 1000
# Of a longer one so many bytes in a row are seen by a look at every 47th; being prime, this finds
# no pattern in rows of one length.
_STEP = 47
_SEEN = b"1" * ((MAX_NUMBER + 1) // _STEP)
_NUMERIC = bytes(b"1"[0] if char in b"-+.eE0123456789" else 0 for char in range(256))

_strings = re.compile(STRING, re.DOTALL)
_long_number = re.compile(rb"[-+.eE0-9]{%d}" % (MAX_NUMBER + 1))


def is_utf8(text: bytes) -> bool:
    """Whether the bytes are UTF-8."""
    try:
        if not text.isascii():
            text.decode()
    except UnicodeDecodeError:
        return False
    return True


def has_long_number(text: bytes) -> bool:
    """Whether a number in a JSON text is longer than `MAX_NUMBER`."""
    suspicious = _SEEN in text[::_STEP].translate(_NUMERIC)
    return suspicious and _long_number.search(_strings.sub(b"", text)) is not None

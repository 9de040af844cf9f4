"""Requests that try to cost more than they are worth, each whole, as bytes for a socket.

Sizes are the greatest that come as far as they are meant to: bodies fill what a body may hold by
default, tokens and queries what fits into a line of a head. Some go far beyond.
"""

import base64
import hmac
from collections.abc import Iterator

from tests.conftest import ADMIN, RATES, SECRET, caller
from tests.conftest import RATE as RATE_ID

MAX_BODY = 262_144
LINE = 8000
MONEY = ',"amount":"1"'
ACTION = f'{{"type":"deposit","username":"alice","currency":"BTC"{MONEY}'
NEW_RATE = (
    '{"baseInstrumentCode":"BRL","counterInstrumentCode":"BTC","amount":35000000,"scale":2,'
    '"source":"here"'
)
END = b"0\r\n\r\n"
IDENTITY = caller(*ADMIN)


def request(
    line: str, headers: list[str] | None = None, body: bytes = b"", *, identified: bool = True
) -> bytes:
    """The bytes of a request; `headers` are lines that come after those every request has."""
    lines = [f"{line} HTTP/1.1", "Host: gateway", "Idempotency-Key: k-1"]
    lines += [f"{name}: {value}" for name, value in IDENTITY.items()] * identified
    lines += headers or []
    if body:
        lines += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


# Bodies.


def filled(start: str, part: str, end: str, most: int = MAX_BODY) -> str:
    """As many parts between a start and an end as a body may hold; `#` in a part is its number."""
    texts, left, number = [start], most - len(start) - len(end), 0
    while True:
        text = part.replace("#", f"{number:x}")
        left -= len(text)
        if left < 0:
            return "".join([*texts, end])
        texts.append(text)
        number += 1


def values() -> dict[str, str]:
    """JSON values that are too much, by what they are."""
    return {
        "nested arrays": "[" * 100_000 + "]" * 100_000,
        "nested arrays without an end": "[" * 200_000,
        "nested objects": '{"":' * 40_000 + "0" + "}" * 40_000,
        "nested by turns": '[{"":' * 30_000 + "0" + "}]" * 30_000,
        "an array of zeros": filled("[0", ",0", "]", 250_000),
        "an array of arrays": filled("[0", ",[]", "]", 250_000),
        "an array of objects": filled("[0", ",{}", "]", 250_000),
        "an array of floats": filled("[0", ",1e9", "]", 250_000),
        "an array of keys": filled("[0", ',{"":0}', "]", 250_000),
        "an array of zeros and a long number": filled("[0", ",0", "," + "9" * 101 + "]", 250_000),
        "an array of keys and an escape": filled("[0", ',{"":0}', ',"\\u0041"]', 250_000),
        "an array of arrays, each nested": filled("[0", "," + "[" * 60 + "]" * 60, "]", 250_000),
        "arrays among numbers": filled("[0" + ",[]" * 9900, ",1e9", "]", 250_000),
        "objects among texts": filled("[0" + ',{"":""}' * 9900, ',"\\u00e9"', "]", 250_000),
        "5000 digits": "9" * 5000,
        "5000 negative digits": "-" + "9" * 5000,
        "250 000 digits": "9" * 250_000,
        "250 000 decimals": "0." + "9" * 250_000,
        "250 000 digits of an exponent": "1e" + "9" * 250_000,
        "a long text": '"' + "a" * 250_000 + '"',
        "a long text of spaces": '"' + " " * 250_000 + '"',
        "a long text of digits": '"0.' + "0" * 250_000 + '"',
        "a long text of others": '"' + "é" * 125_000 + '"',
        "escapes": '"' + "\\u0041" * 41_000 + '"',
        "half pairs": '"' + "\\ud800" * 41_000 + '"',
        "backslashes": '"' + "\\\\" * 125_000 + '"',
        "a text without an end": '"' + "\\\\" * 125_000,
    }


def objects(fields: str) -> dict[str, str]:
    """JSON objects that begin with some fields, and then have too many."""
    return {
        "unknown fields": filled(fields, ',"#":0', "}"),
        "60 000 unknown fields": filled(fields, ',"#":0', "}", 60_000 * 9),
        "unknown fields with objects": filled(fields, ',"#":{}', "}"),
        "one key over and over": filled(fields, ',"":0', "}"),
        "known keys over and over": filled(fields, ',"amount":"1"', "}"),
        "one long key": fields + ',"' + "a" * 250_000 + '":0}',
        "metadata of 10 000 keys": filled(fields + ',"metadata":{"":0', ',"#":0', "}}", 110_000),
        "metadata keys": filled(fields + ',"metadata":{"":0', ',"#":0', "}}"),
        "metadata of long values": filled(
            fields + ',"metadata":{"":0', ',"#":"' + "a" * 2001 + '"', "}}"
        ),
        "space": filled(fields, " ", ""),
        "a byte that is no UTF-8 at the end": filled(fields, " ", "") + "\udcff",
    }


def bodies() -> Iterator[tuple[str, bytes]]:
    """What no write may send."""
    action, new, change = "POST /ledger", f"POST {RATES}", f"PATCH {RATES}/{RATE_ID}"
    for name, text in values().items():
        yield f"{name} for an action", request(action, body=text.encode())
        yield f"{name} for a change", request(change, body=text.encode())
        amount = f'{ACTION.replace(MONEY, "")},"amount":{text}}}'
        yield f"{name} as an amount", request(action, body=amount.encode())
        yield f"{name} as metadata", request(new, body=f'{NEW_RATE},"metadata":{text}}}'.encode())
    for kind, route, fields in (
        ("an action", action, ACTION),
        ("a rate", new, NEW_RATE),
        ("a change", change, '{"scale":2'),
    ):
        for name, text in objects(fields).items():
            body = text.encode(errors="surrogateescape")
            yield f"{name} of {kind}", request(route, body=body)


def framings() -> Iterator[tuple[str, bytes]]:
    """Bodies in pieces."""
    head = request("POST /ledger", ["Content-Type: application/json", "Transfer-Encoding: chunked"])
    yield "chunks of a byte", head + b"1\r\n[\r\n" * 40_000 + END
    yield "chunks with long extensions", head + (b"1;" + b"x" * 4000 + b"\r\n[\r\n") * 100 + END
    yield "a chunk size of many digits", head + b"0" * 100_000 + b"1\r\n[\r\n" + END
    yield "many trailers", head + b"2\r\n{}\r\n0\r\n" + b"a: b\r\n" * 50_000 + b"\r\n"


# Heads.


def heads() -> Iterator[tuple[str, bytes]]:
    """What stands before a body."""
    line = "GET /ledger"
    yield "a header of a megabyte", request(line, ["X-A: " + "a" * 1_000_000])
    yield "a name of a megabyte", request(line, ["a" * 1_000_000 + ": a"])
    yield "headers without an end", request(line, [f"X-{n}: {n}" for n in range(100_000)])[:-4]
    yield "5000 headers", request(line, [f"X-{n}: {n}" for n in range(5000)])
    yield "5000 headers of one kind", request(line, ["username: admin"] * 5000)
    yield "identities", request(line, ["username: admin"] * 100)
    yield "tokens", request(line, [f"Authorization: {IDENTITY['Authorization']}"] * 30)
    yield "lengths", request(line, ["Content-Length: 0"] * 100)
    yield "hosts", request(line, ["Host: a"] * 100)
    yield "keys", request("POST /ledger", ["Idempotency-Key: k-1"] * 100, b"{}")
    yield "types", request("POST /ledger", ["Content-Type: application/json"] * 100, b"{}")
    spaces = "Content-Type: application/json;" + " " * LINE + "x"
    yield "a long type", request("POST /ledger", [spaces, "Content-Length: 2"]) + b"{}"
    yield "codings", request("POST /ledger", ["Transfer-Encoding: " + "gzip, " * 1000])
    yield "the longest head", request(line + "/", [f"X-{n}: {'a' * LINE}" for n in range(100)])
    yield "empty lines", b"\r\n" * 100_000 + b"x\r\n\r\n"
    yield "a method of a megabyte", request("G" * 1_000_000 + " /ledger")
    yield "a path of a megabyte", request("GET /" + "a" * 1_000_000)


# Targets.


def targets() -> Iterator[tuple[str, bytes]]:
    """Paths and queries that fill their line."""
    over = {
        "a long name": "/ledger/" + "a" * LINE,
        "a long name in escapes": "/ledger/" + "%61" * (LINE // 3),
        "escapes of escapes": "/ledger/%" + "25" * (LINE // 2),
        "a long order": "/ledger/order/" + "1" * LINE,
        "segments": "/ledger" + "/a" * (LINE // 2),
        "empty segments": "/ledger" + "/" * LINE,
        "steps up": "/ledger" + "/.." * (LINE // 3),
        "steps up in escapes": "/ledger" + "/%2e%2e" * (LINE // 7),
        "a long id": RATES + "/" + "a" * (LINE - 200),
        "parameters": "/ledger?" + "a&" * (LINE // 2),
        "empty parameters": "/ledger?" + "&" * LINE,
        "a long parameter": "/ledger?currency=" + "a" * LINE,
        "a long unknown parameter": "/ledger?" + "a" * LINE,
        "escapes in a query": "/ledger?type=" + "%25" * (LINE // 3),
        "plus signs": "/ledger?since=" + "+" * LINE,
        "a long limit": "/ledger?limit=" + "9" * LINE,
        "a long time": "/ledger?since=2024-01-01T00:00:00." + "9" * LINE + "Z",
        "a long cursor": "/ledger?limit=1&cursor=" + "A" * LINE,
        "the longest cursor": "/ledger?limit=1&cursor=" + "A" * 4096,
        "cursors": "/ledger?limit=1" + "&cursor=A" * 31,
        "metadata pairs": RATES + "?" + "&".join(f"metadata.{n}={n}" for n in range(33)),
        "metadata in arrays": RATES + "?metadata=" + "[" * (LINE - 200),
        "metadata in whole arrays": RATES + "?metadata=" + "[" * 3900 + "]" * 3900,
        "metadata in objects": RATES + "?metadata=" + '{"":' * 1000,
        "metadata of many keys": RATES + "?metadata=" + filled('{"":0', ',"#":0', "}", LINE // 2),
        "metadata of one key": RATES + "?metadata=" + filled('{"":0', ',"":0', "}", LINE // 2),
        "metadata of 5000 digits": RATES + '?metadata={"a":' + "9" * 5000 + "}",
        "metadata of 5000 decimals": RATES + '?metadata={"a":0.' + "9" * 5000 + "}",
        "metadata of a great exponent": RATES + '?metadata={"a":1e' + "9" * 5000 + "}",
        "metadata of escapes": RATES + '?metadata={"a":"' + "\\ud800" * 1200 + '"}',
    }
    for name, target in over.items():
        yield name, request("GET " + target.replace('"', "%22").replace("{", "%7B"))


# Tokens.


def token(header: str, claims: str) -> str:
    """A token of any text, with a signature that holds."""
    parts = [base64.urlsafe_b64encode(part.encode()).rstrip(b"=") for part in (header, claims)]
    signed = b".".join(parts)
    signature = hmac.digest(SECRET.encode(), signed, "sha256")
    return (signed + b"." + base64.urlsafe_b64encode(signature).rstrip(b"=")).decode()


def tokens() -> Iterator[tuple[str, bytes]]:
    """Tokens that fill their line, and longer ones."""
    header, most = '{"alg":"HS256"', 5500
    claims = '{"sub":"admin","role":"admin","exp":4000000000'
    late = '{"sub":"admin","exp":4000000000'
    texts = {
        "a nested header": (header + ',"x":' + "[" * 2700 + "]" * 2700 + "}", claims + "}"),
        "a header without an end": ("[" * most, claims + "}"),
        "a header of many keys": (filled(header, ',"#":0', ',"crit":[]}', most), claims + "}"),
        "a header of one key": (filled(header, ',"":0', "}", most), claims + "}"),
        "a long algorithm": ('{"alg":"' + "A" * most + '"}', claims + "}"),
        "a long key id": (header + ',"kid":"' + "k" * most + '"}', claims + "}"),
        "a header of 5000 digits": (header + ',"x":' + "9" * 5000 + "}", claims + "}"),
        "nested claims": (header + "}", claims + ',"x":' + "[" * 2700 + "]" * 2700 + "}"),
        "claims without an end": (header + "}", '{"":' * (most // 4)),
        "claims of one key": (header + "}", filled(claims, ',"":0', "}", most)),
        "claims of many keys": (header + "}", filled(late, ',"#":0', "}", most)),
        "a time of 5000 digits": (header + "}", late + ',"nbf":' + "9" * 5000 + "}"),
        "a time of 5000 decimals": (header + "}", late + ',"iat":9.' + "9" * 5000 + "e99}"),
        "a long name": (header + "}", '{"exp":4000000000,"sub":"' + "a" * 5000 + '"}'),
        "many roles": (header + "}", filled(late + ',"roles":[""', ',"r#"', "]}", most)),
        "a long role": (header + "}", late + ',"role":"' + "a" * 5000 + '"}'),
        "half pairs": (header + "}", late + ',"x":"' + "\\ud800" * 900 + '"}'),
    }
    for name, (first, second) in texts.items():
        yield name, _with(f"Bearer {token(first, second)}")
    yield "a token of a megabyte", _with("Bearer " + token(header + "}", "a" * 750_000))
    yield "dots", _with("Bearer " + "." * LINE)
    yield "parts", _with("Bearer " + "a." * (LINE // 2))
    yield "one long part", _with("Bearer " + "a" * LINE)
    yield "almost a token", _with("Bearer " + "a" * (LINE - 100) + ".a.")
    yield "spaces", _with("Bearer" + " " * LINE + "x")
    yield "schemes", _with("Bearer " * (LINE // 7))


def _with(credentials: str) -> bytes:
    headers = [f"Authorization: {credentials}", "username: admin"]
    return request("GET /ledger", headers, identified=False)


def good() -> bytes:
    """What must be served as if nothing had been."""
    return request("GET /ledger")

"""What the OpenAPI document says in words: of the whole, of each route, of what can go wrong."""

from gateway import errors
from gateway.authz import Access

ABOUT = """\
**Identity.** Send a JWT in one `Authorization` header, as `Bearer <token>` or bare. Its user name
must equal the `username` header, which ledger routes require and rates routes accept. Its role is
`admin`, `service` or `user`; a user reads only their own rows, and those without the fields
`lp_id`, `lp_name` and `created_by_id` (an operator may choose others).

**Replies.** Ledger routes answer `{"api_message": "<KEY>", "api_data": …}`, rates routes the rate
itself or a bare array. What the ledger wrote is what you read, byte for byte: money is a decimal
string, and row types and fields that are not described here are passed on. A rate's value is
amount × 10^−scale; its `amount` can be too long for a float.

**Lists.** Without `limit` a ledger list holds all rows, newest first, and is streamed: if the
ledger fails on the way the connection is cut, and what came is not JSON. With `limit` it is a page,
and a `Link` header with `rel="next"` leads to the next. Cursors are opaque, and good only for the
caller, route and filters they were made for. Parameters that are not described are refused.

**Caching.** What was read a moment ago may be answered again; never what an acknowledged write has
changed. `Age` says how many seconds old an answer is, `Cache-Status` how it was come by. An `ETag`
sent back in `If-None-Match` is answered 304 while nothing has changed for you. `Cache-Control` of a
request may say `no-cache`, `no-store`, `max-age=<seconds>` or `stale-if-error=<seconds>`.

**Repeating a write** with the same `Idempotency-Key` and body gives the first answer again, with
`Idempotency-Replayed: true`, also while the first is in flight. With another body it is 422. A
write with `If-Match` or `If-Unmodified-Since` is 400: only the ledger could compare and write.

**Limits.** Where there is one on a user's requests, `RateLimit` and `RateLimit-Policy` tell of it
on every answer to that user, and 429 says in `Retry-After` when to ask again.

**Errors** say what went wrong, who says so (`origin`) and which request it was. On ledger routes
the code is `api_message`. On rates routes it is `code`: 0009 missing fields, 0053 unexpected
fields, 0047 wrong type or value, 0094 malformed JSON, 0065 malformed path, 0028 the pair exists,
0007 not found, 0041 no token, 0042 invalid token, 0043 not allowed, or a word. A method that a path
does not have is 405, with `Allow`.
"""
# Who may call a route, and what they see of it, is derived from its roles.
SUMMARIES = {
    "listLedger": "List the rows of the ledger",
    "registerAction": "Register an action",
    "listOrder": "List the rows of an order",
    "listUser": "List the rows of a user",
    "listPendingDeposits": "List a user's pending deposits by currency",
    "createRate": "Create the exchange rate of a pair of instruments",
    "listRates": "List the exchange rates that are not deleted",
    "getRate": "Read an exchange rate, deleted or not",
    "updateRate": "Change an exchange rate; metadata are replaced as a whole",
    "deleteRate": "Make an exchange rate INACTIVE, and leave it out of lists",
}
SEEN_BY_USERS = {
    Access.ALL: "A user reads what everybody reads.",
    Access.OWN_ROWS: "A user is shown their own rows only.",
    Access.OWN_NAME: "A user may put only their own name in the path; else it is 403.",
}
NOTES = {
    "limit": "rows on a page; without it, all rows",
    "cursor": "where the page begins, from the `Link` of the one before; goes with `limit`",
    "since": "no rows before this instant",
    "until": "no rows after this instant",
    "username": "the token's user name",
    # Has no pattern, as no value of it is refused.
    "X-Request-Id": "1 to 128 of `A-Za-z0-9._-`, returned and logged; else one is made",
    "If-None-Match": "the `ETag` of an answer that you have",
    "Cache-Control": "`no-cache`, `no-store`, `max-age=<s>` or `stale-if-error=<s>`",
    "Idempotency-Key": "the same for all repetitions of a write",
}
# What can go wrong: each sentence describes an answer, and stands in its example.
FAULTS = (
    errors.InvalidPath("A path parameter is malformed."),
    errors.InvalidQuery("The query breaks a rule.", fields={"page": "is not expected"}),
    errors.MalformedBody("The body is not a JSON document, or a header is malformed."),
    errors.InvalidRate("0047", "The rate breaks a rule.", fields={"scale": "must be an integer"}),
    errors.TokenMissing("There is no token."),
    errors.TokenInvalid("The token is not valid, or the username header is missing."),
    errors.Forbidden("The role or the user name does not allow this."),
    errors.LedgerRefused(404, "NOT_FOUND", "There is no such thing.", midaz_code="0007"),
    errors.RequestTimeout("The body did not arrive in time."),
    errors.LedgerRefused(409, "CONFLICT", "It is in flight, or exists.", midaz_code="0028"),
    errors.PayloadTooLarge("The body is too large."),
    errors.UnsupportedMediaType("The body must be application/json in UTF-8, not compressed."),
    errors.InvalidAction("The action breaks a rule.", fields={"amount": "is required"}),
    errors.LedgerRefused(422, "REFUSED", "The key came with another body.", midaz_code="0047"),
    errors.LedgerRefused(429, "TOO_MANY_REQUESTS", "There are too many requests."),
    errors.LedgerBroken("The ledger answered nonsense, or broke off."),
    errors.LedgerUnreachable("The ledger cannot be reached."),
    errors.NotReady("The gateway is not ready."),
    errors.LedgerTimeout("The ledger did not answer in time."),
    errors.OutcomeUnknown("A write may be done or not: repeat it with its Idempotency-Key."),
)

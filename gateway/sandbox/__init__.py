"""The embedded sandbox ledger: a small real server that speaks the native contract in memory.

`store` and `generated` hold the rows, `seed` what is there at the start, `server` is the HTTP edge.
"""

from gateway.sandbox.seed import ADMIN, LEDGER_ID, ORGANIZATION_ID, RATE_IDS, SERVICE, USERS
from gateway.sandbox.server import create_sandbox

__all__ = [
    "ADMIN",
    "LEDGER_ID",
    "ORGANIZATION_ID",
    "RATE_IDS",
    "SERVICE",
    "USERS",
    "create_sandbox",
]

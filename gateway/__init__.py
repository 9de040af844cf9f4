"""A thin gateway in front of an external ledger. A request takes one straight walk:

1. `middlewares`  gives it an id and a trace, and turns every error of ours into an answer.
2. `endpoints`    is the one table: what a route is, who may call it, what it becomes at the ledger;
                  `routing` finds the route.
3. `authn`        who asks: the token and the `username` header become a `Principal`.
4. `authz`        may they, and which rows and fields they may see: a `View`.
5. `schemas`      what do they want: path, query and body, checked before the ledger hears of it.
6. `cache`        the ledger's raw answer if it is known, else from
7. `ledger`       the ledger, under one deadline, its faults translated; `upstream` and `replies`
                  are the connections to it.
8. `rows`         what they may see of it: slices of the ledger's own bytes, never rewritten.
9. `walk`         does 3 to 8 in order, in one file that reads from top to bottom.
10. `edge`        sends it, in the coding that suits the caller, or says that they have it already;
                  `responses` puts it in one piece.
11. `fast_path`   gives an answer that was given before again, while all that decided it stands.
12. `app`         is where all of it meets; `__main__` starts it.
"""

__version__ = "0.1.0"

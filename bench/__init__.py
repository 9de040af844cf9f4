"""Measures the gateway beside servers that do the same job: `make bench`.

`works` says what is measured, one file for a kind of work. `stage` starts a ledger to ask and the
gateway, `peers` the others, `processes` any of them. `wrk` loads them as hard as they bear,
`open_loop` at a fixed rate. `figures` makes rounds into medians, ratios and verdicts, `profiles`
says where time goes, and `report` and `picture` write down what came of it.

`stream` stands apart: it measures how a very long list is streamed.
"""

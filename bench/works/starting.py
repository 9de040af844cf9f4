"""From the command to the first answer that says ready."""

import sys
import time

from bench.figures import Bound, Result, Shot
from bench.processes import free_port, running
from bench.stage import ROOT, Stage, gateway_environment

_LIMIT_S = 0.8


def until_ready(stage: Stage, result: Result) -> None:
    """`serve`, with no ledger there yet; the first start, which compiles, is left out."""
    start_to_ready(stage)
    found = stage.contest({"gateway": lambda: Shot(start_to_ready(stage))}, "s")
    result.bounds.append(Bound("start to ready", found["gateway"], _LIMIT_S))


def start_to_ready(stage: Stage) -> float:
    """Seconds, by asking every few milliseconds."""
    port = free_port()
    started = time.perf_counter()
    with running(
        "starting",
        [sys.executable, "-m", "gateway", "serve"],
        port=port,
        cores=stage.serving,
        folder=stage.folder,
        cwd=ROOT,
        environment=gateway_environment(free_port(), port, {}),
        health="/health/ready",
    ):
        return time.perf_counter() - started

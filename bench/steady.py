"""Runs the open loop in a process of its own, so that nothing of ours disturbs its times."""

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from bench.open_loop import Timing
from bench.processes import BenchError, Server, end, on_cores, spawn
from bench.stage import ROOT, Stage
from bench.wrk import head

_PATIENCE_S = 30.0


class Steady:
    """An open loop under way."""

    def __init__(self, popen: "subprocess.Popen[bytes]", seconds: float) -> None:
        self.popen = popen
        self._seconds = seconds

    def timing(self) -> Timing:
        """What came of it, when it is over."""
        output, complaints = self.popen.communicate(timeout=self._seconds + _PATIENCE_S)
        if self.popen.returncode:
            raise BenchError(f"the open loop failed:\n{complaints.decode()}")
        timing = Timing(**json.loads(output))
        if timing.refused:
            raise BenchError(f"not everything was answered well: {timing}")
        return timing


@contextmanager
def steady(
    stage: Stage,
    server: Server,
    paths: Sequence[str],
    headers: Mapping[str, str],
    *,
    rate: float,
    seconds: float,
    connections: int = 64,
) -> Iterator[Steady]:
    """Asks a server at a fixed rate from the core of the load; each connection for one path."""
    requests = stage.folder / "steady.http"
    requests.write_text("".join(head(path, headers) for path in paths), newline="")
    command = [sys.executable, "-m", "bench.open_loop", "--port", str(server.port)]
    command += ["--requests", str(requests), "--rate", str(rate), "--seconds", str(seconds)]
    with on_cores(stage.loading):
        command += ["--connections", str(connections)]
        popen = spawn(command, ROOT, subprocess.PIPE, subprocess.PIPE)
    try:
        with popen:
            yield Steady(popen, seconds)
    finally:
        end(popen)

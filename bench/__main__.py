"""Runs the measurements, prints a table, and writes `RESULTS.md` and `results.svg`."""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType

from bench import machine, report
from bench.figures import BUSY, Result
from bench.processes import BenchError, on_cores
from bench.stage import ROOT, Stage
from bench.works import WORKS, Work

_HERE = Path(__file__).parent
_PEER_PYTHON = ROOT / ".venv-bench" / "bin" / "python"
# Longer than this nothing sensible takes.
_LIMIT_S = 3600
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)


def main(arguments: Sequence[str] | None = None) -> int:
    """0 if everything was measured, whatever came of it; 1 with a message if not."""
    options = _parser().parse_args(arguments)
    for number in _SIGNALS:
        signal.signal(number, _leave)
    signal.alarm(_LIMIT_S)
    try:
        run = _measured(options)
    except BenchError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("bench: interrupted; everything that was started has ended", file=sys.stderr)
        return 130
    print(report.plain(report.table(run.results)))
    if options.output is not None:
        _write(run, options.output, options.peer_python)
    return 0


def _leave(number: int, _frame: FrameType | None) -> None:
    """Ends by way of every `finally`, undisturbed: nothing that was started is left behind."""
    for other in _SIGNALS:
        signal.signal(other, signal.SIG_IGN)
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    if number == signal.SIGALRM:
        raise BenchError(f"not done after {_LIMIT_S} s")
    raise SystemExit(128 + number)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("bench", description=__doc__)
    listed = "; ".join(f"{number} {work.title}" for number, work in enumerate(WORKS, 1))
    parser.add_argument("--rounds", type=int, default=5, help="of each contestant; default: 5")
    parser.add_argument("--seconds", type=int, default=3, help="of a round; default: 3")
    parser.add_argument("--spare", type=int, default=5, help="to repeat disturbed ones; default: 5")
    parser.add_argument("--quick", action="store_true", help="one round of one second")
    parser.add_argument("--only", type=_numbers, default="", help=f"such as 1,4. {listed}")
    parser.add_argument("--profile", action="store_true", help="say where the time goes")
    parser.add_argument(
        "--output",
        type=Path,
        help="where to write; default: bench/, and nowhere with --quick or --only",
    )
    parser.add_argument("--peer-python", type=Path, default=_PEER_PYTHON, help=argparse.SUPPRESS)
    parser.set_defaults(run=_completed)
    return parser


def _numbers(text: str) -> list[Work]:
    chosen = [int(part) for part in text.split(",") if part]
    if any(not 1 <= number <= len(WORKS) for number in chosen):
        raise argparse.ArgumentTypeError(f"1 to {len(WORKS)}")
    return [WORKS[number - 1] for number in chosen]


def _completed(options: argparse.Namespace) -> None:
    if options.output is None and not options.quick and not options.only:
        options.output = _HERE
    if options.quick:
        options.rounds, options.seconds, options.spare = 1, 1, 0


def _measured(options: argparse.Namespace) -> report.Run:
    options.run(options)
    tools = machine.find_tools(options.peer_python)
    serving, loading = machine.two_cores()
    started, when = time.monotonic(), datetime.now(UTC)
    results = []
    for work in options.only or WORKS:
        # Short: its path stands in what the peers write of themselves. Servers that give up their
        # rights must still be able to read it.
        with tempfile.TemporaryDirectory(prefix="bench-") as folder:
            os.chmod(folder, 0o755)
            stage = Stage(
                tools,
                Path(folder),
                serving,
                loading,
                options.rounds,
                options.seconds,
                options.spare,
                options.profile,
            )
            results.append(_result(work, stage))
    return report.Run(
        when=f"{when:%Y-%m-%d %H:%M} UTC",
        took=f"{(time.monotonic() - started) / 60:.1f} min",
        rounds=options.rounds,
        seconds=options.seconds,
        machine=machine.describe(),
        versions=machine.versions(tools),
        results=results,
    )


def _result(work: Work, stage: Stage) -> Result:
    print(f"{work.title} ...", file=sys.stderr, flush=True)
    result, others = Result(work.title, work.method, os.getloadavg()[0]), machine.Others()
    with on_cores(stage.loading):
        work.run(stage, result)
    result.foreign_load = others.cores()
    if result.foreign_load > BUSY:
        print(f"... while others took {result.foreign_load:.2f} of a core", file=sys.stderr)
    return result


def _write(run: report.Run, folder: Path, peer_python: Path) -> None:
    (folder / "RESULTS.md").write_text(report.document(run), "utf-8")
    bars = [
        [
            f"{ratio.work} / {ratio.peer.name}",
            min(ratio.quotients),
            ratio.value,
            max(ratio.quotients),
            ratio.reach if ratio.reach is not None else ratio.towards,
            ratio.standing,
        ]
        for result in run.results
        for ratio in result.ratios
    ]
    command = [str(peer_python), str(_HERE / "picture.py"), str(folder / "results.svg")]
    done = subprocess.run(command, input=json.dumps(bars), text=True, timeout=120)
    if done.returncode:
        raise BenchError("the picture could not be drawn")


if __name__ == "__main__":
    sys.exit(main())

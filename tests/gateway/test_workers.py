"""Several processes: started, watched, replaced, told to stop, and never left behind."""

import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.gateway.processes import Running, is_alive, python

# The work of a worker that serves: it says that it is there, and ends when it is told to.
SERVES = """
def work():
    signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)
    say("works", os.getpid())
    signal.sigwait(STOPS)
    return 0
"""
PROGRAM = """
import os, signal, sys
from gateway import workers

STOPS = {{signal.SIGTERM, signal.SIGINT}}

def say(*words):
    os.write(1, " ".join(map(str, words)).encode() + b"\\n")

{work}
supervisor = os.getpid()
status = workers.Workers({count}, work).run()
say("over", status, "supervisor" if os.getpid() == supervisor else "worker")
sys.exit(status)
"""


@asynccontextmanager
async def supervising(folder: Path, work: str, count: int = 2) -> AsyncIterator[Running]:
    async with python("-c", PROGRAM.format(work=work, count=count), cwd=folder) as running:
        yield running


async def started(running: Running, count: int) -> list[int]:
    """The process ids of the next workers that say that they work."""
    lines = [await running.line("works ") for _ in range(count)]
    return [int(line.partition("works ")[2]) for line in lines]


@pytest.mark.parametrize("count", [1, 3])
async def test_as_many_processes_work_as_were_asked_for(tmp_path: Path, count: int) -> None:
    async with supervising(tmp_path, SERVES, count) as running:
        workers = await started(running, count)
        running.send(signal.SIGTERM)
        _, out, _ = await running.ended()
    assert len({*workers, running.process.pid}) == count + 1
    assert out.count("works") == count


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_stop_signal_reaches_every_worker_and_none_is_left(
    tmp_path: Path, number: signal.Signals
) -> None:
    async with supervising(tmp_path, SERVES) as running:
        workers = await started(running, 2)
        running.send(number)
        status, out, err = await running.ended()
    assert (status, err) == (0, "")
    assert out.endswith("over 0 supervisor\n")
    assert not any(is_alive(worker) for worker in workers)


async def test_the_exit_status_is_the_worst_of_the_workers(tmp_path: Path) -> None:
    work = SERVES.replace("return 0", "return 3 if os.getpid() % 2 else 4")
    async with supervising(tmp_path, work) as running:
        workers = await started(running, 2)
        running.send(signal.SIGTERM)
        status, _, _ = await running.ended()
    assert status == max(3 if worker % 2 else 4 for worker in workers)


async def test_a_worker_that_dies_is_replaced(tmp_path: Path) -> None:
    work = "workers._INFANCY_S = 0.0\n" + SERVES
    async with supervising(tmp_path, work) as running:
        first = await started(running, 2)
        for victim in first:
            os.kill(victim, signal.SIGKILL)
        second = await started(running, 2)
        running.send(signal.SIGTERM)
        status, out, _ = await running.ended()
    assert not {*first} & {*second}
    assert status == 0
    assert out.count("worker died") == 2
    assert not any(is_alive(worker) for worker in first + second)


@pytest.mark.parametrize("count", [1, 2])
async def test_a_worker_that_there_is_no_room_for_is_replaced_later(
    tmp_path: Path, count: int
) -> None:
    work = f"""
workers._INFANCY_S = 0.0
forks, fork = [], os.fork

def fork_with_little_room():
    forks.append(None)
    if len(forks) == {count} + 1:
        raise BlockingIOError("no room for another process")
    return fork()

os.fork = fork_with_little_room
{SERVES}"""
    async with supervising(tmp_path, work, count) as running:
        first = await started(running, count)
        os.kill(first[0], signal.SIGKILL)
        await running.line("worker not started")
        second = await started(running, 1)
        assert all(is_alive(worker) for worker in first[1:] + second)
        running.send(signal.SIGTERM)
        status, out, err = await running.ended()
    assert (status, err) == (0, "")
    assert out.endswith("over 0 supervisor\n")


@pytest.mark.parametrize(
    "death",
    ["return 0", "return 1", "raise KeyError", "sys.exit(0)", "os.kill(os.getpid(), 9)"],
)
async def test_a_worker_that_dies_young_ends_it_all_as_a_failure(
    tmp_path: Path, death: str
) -> None:
    work = f"""
def work():
    signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)
    say("works", os.getpid())
    try:
        os.close(os.open("elder", os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        {death}
    signal.sigwait(STOPS)
    return 0
"""
    async with supervising(tmp_path, work) as running:
        workers = await started(running, 2)
        status, out, _ = await running.ended()
    assert status == 1
    assert out.count("works") == 2
    assert out.count("over") == 1
    assert out.endswith("over 1 supervisor\n")
    assert not any(is_alive(worker) for worker in workers)


async def test_workers_that_die_young_all_at_once_are_one_failure(tmp_path: Path) -> None:
    work = """
born, fork, sigwait = [], os.fork, signal.sigwait

def noted_fork():
    process = fork()
    if process:
        born.append(process)
    return process

def when_all_have_died(numbers):
    while born:
        os.waitid(os.P_PID, born.pop(), os.WEXITED | os.WNOWAIT)
    return sigwait(numbers)

os.fork, signal.sigwait = noted_fork, when_all_have_died

def work():
    say("works", os.getpid())
    return 1
"""
    async with supervising(tmp_path, work, count=3) as running:
        workers = await started(running, 3)
        status, out, err = await running.ended()
    assert (status, err) == (1, "")
    assert out.endswith("over 1 supervisor\n")
    assert not any(is_alive(worker) for worker in workers)


async def test_an_error_in_the_work_is_told_and_stays_in_the_worker(tmp_path: Path) -> None:
    work = """
def work():
    raise KeyError("what went wrong")
"""
    async with supervising(tmp_path, work, count=1) as running:
        status, out, err = await running.ended()
    assert (status, out.count("over")) == (1, 1)
    assert "what went wrong" in err


async def test_output_that_cannot_be_written_at_the_end_stays_in_the_worker(
    tmp_path: Path,
) -> None:
    work = """
def work():
    sys.stdout = open("/dev/full", "w")
    print("lost")
    return 3
"""
    async with supervising(tmp_path, work, count=1) as running:
        line = await running.line("over ")
        status, _, err = await running.ended()
    assert (line, status, err) == ("over 1 supervisor\n", 1, "")


async def test_an_error_that_cannot_be_told_stays_in_the_worker(tmp_path: Path) -> None:
    work = """
def work():
    sys.stderr = open("/dev/full", "w", buffering=1)
    raise KeyError("what went wrong")
"""
    async with supervising(tmp_path, work, count=1) as running:
        status, out, err = await running.ended()
    assert (status, err) == (1, "")
    assert [line for line in out.splitlines() if line.startswith("over")] == ["over 1 supervisor"]


@pytest.mark.parametrize("forks", [1, 2, 3])
async def test_a_stop_signal_that_comes_while_workers_are_started_stops_it_all(
    tmp_path: Path, forks: int
) -> None:
    work = f"""
forks, fork = [], os.fork

def fork_and_stop():
    process = fork()
    if process != 0:
        forks.append(process)
        say("forked", process)
        if len(forks) == {forks}:
            os.kill(os.getpid(), signal.SIGTERM)
    return process

os.fork = fork_and_stop

def work():
    signal.sigwait(STOPS)
    return 0
"""
    async with supervising(tmp_path, work, count=3) as running:
        status, out, _ = await running.ended()
    assert (status, out.count("over")) == (0, 1)
    forked = [int(line.split()[1]) for line in out.splitlines() if line.startswith("forked")]
    assert len(forked) >= forks
    assert not any(is_alive(worker) for worker in forked)


async def test_a_stop_signal_that_comes_just_when_a_worker_has_died_stops_it_all(
    tmp_path: Path,
) -> None:
    work = (
        """
workers._INFANCY_S = 0.0

def and_stop(wait):
    def wait_and_stop(*arguments):
        process, code = wait(*arguments)
        if process:
            os.kill(os.getpid(), signal.SIGTERM)
        return process, code
    return wait_and_stop

os.wait, os.waitpid = and_stop(os.wait), and_stop(os.waitpid)
"""
        + SERVES
    )
    async with supervising(tmp_path, work) as running:
        workers = await started(running, 2)
        os.kill(workers[0], signal.SIGKILL)
        _, out, err = await running.ended()
    assert err == ""
    assert out.count("over") == 1
    assert not any(is_alive(worker) for worker in workers)


async def test_workers_whose_supervisor_was_killed_stop_as_if_they_were_told_to(
    tmp_path: Path,
) -> None:
    work = SERVES.replace("return 0", 'say("stopped")\n    return 0')
    async with supervising(tmp_path, work) as running:
        await started(running, 2)
        running.send(signal.SIGKILL)
        # Ended is only when nobody writes to its output any more.
        status, out, err = await running.ended()
    assert (status, err) == (-signal.SIGKILL, "")
    assert out.count("stopped") == 2

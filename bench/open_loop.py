"""Sends requests at fixed times, whether or not answers came, and measures from those times.

A closed loop asks the next question only when it has its answer, so a server that stalls is asked
less while it does, and its worst moments are hardly seen. Here what is due stays due: a request
that had to wait for a free connection is late, and that is what its caller would have felt.

Run as a program it prints one JSON object.
"""

import argparse
import gc
import json
import re
import select
import socket
import sys
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from bench.figures import percentile

_READ = 1 << 20
_END = b"\r\n\r\n"
# How long answers are waited for when everything has been sent.
_LAST_ANSWERS_S = 5.0


@dataclass(frozen=True)
class Timing:
    """What came of a run. Times in milliseconds."""

    due: int
    answered: int
    refused: int
    p50: float
    p99: float
    longest: float
    # How late the generator itself was, with a connection free, at its 99th percentile; and the
    # part of the time in which it did not wait for an answer or for the next to be due.
    late_p99: float
    busy: float


class _Connection:
    __slots__ = ("due", "freed", "received", "request", "send", "socket")

    def __init__(self, port: int, request: bytes) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=10)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # Callers keep their connections: that they had to be made is not what is measured.
        self.socket.sendall(request)
        answer = b""
        while not is_whole(answer):
            answer += received(self.socket)
        self.socket.setblocking(False)
        self.request = request
        self.send = self.socket.send
        self.received = b""
        self.due = self.freed = 0.0


class Generator:
    """One run against one port. Each connection sends one of the requests over and over."""

    def __init__(self, port: int, requests: Sequence[bytes], connections: int) -> None:
        made = [_Connection(port, requests[n % len(requests)]) for n in range(connections)]
        self._free = deque(made)
        self._by_number = {each.socket.fileno(): each for each in made}
        self._poll = select.epoll()
        for number in self._by_number:
            self._poll.register(number, select.EPOLLIN)
        self._times: list[float] = []
        self._lateness: list[float] = []
        self._refused = 0
        # The Content-Length of the last answer, as it stood there: most others have the same.
        self._line, self._length = b"\r\n\r\n", -1

    def run(self, rate: float, seconds: float, patience: float = _LAST_ANSWERS_S) -> Timing:
        """Sends `rate` requests per second for so long, and waits for the last answers."""
        due_count, interval = max(1, int(rate * seconds)), 1 / rate
        start, idle = time.perf_counter() + 0.01, 0.0
        sent, last = 0, start + seconds + patience
        while len(self._times) < due_count and (now := time.perf_counter()) < last:
            # Those due go out together, as far as there are connections for them.
            while self._free and sent < due_count and (due := start + sent * interval) <= now:
                self._send(due)
                sent += 1
            waiting = time.perf_counter()
            ready = self._poll.poll(0.001)
            idle += time.perf_counter() - waiting
            for number, _ in ready:
                self._receive(self._by_number[number])
        busy = 1 - idle / (time.perf_counter() - start)
        return self._timing([start + number * interval for number in range(sent, due_count)], busy)

    def _send(self, due: float) -> None:
        connection = self._free.popleft()
        connection.due = due
        connection.send(connection.request)
        self._lateness.append(time.perf_counter() - max(due, connection.freed))

    def _receive(self, connection: _Connection) -> None:
        data = received(connection.socket)
        if connection.received:
            data = connection.received + data
        if not self._is_whole(data):
            connection.received = data
            return
        connection.freed = time.perf_counter()
        self._times.append(connection.freed - connection.due)
        if not data.startswith(b"HTTP/1.1 2"):
            self._refused += 1
        connection.received = b""
        self._free.append(connection)

    def _is_whole(self, data: bytes) -> bool:
        end = data.find(b"\r\n\r\n")
        if data.find(self._line, 0, end + 2) < 0 <= end:
            self._line, self._length = length_of(data[: end + 2])
        return end >= 0 and len(data) >= end + 4 + self._length

    def _timing(self, unsent: Sequence[float], busy: float) -> Timing:
        """Who has no answer yet has waited until here at least."""
        now, free = time.perf_counter(), set(self._free)
        asked = [each.due for each in self._by_number.values() if each not in free]
        waits = [*self._times, *(now - due for due in (*asked, *unsent))]
        times = [1000 * each for each in waits]
        return Timing(
            due=len(times),
            answered=len(self._times),
            refused=self._refused,
            p50=percentile(times, 0.5),
            p99=percentile(times, 0.99),
            longest=max(times),
            late_p99=1000 * percentile(self._lateness, 0.99),
            busy=busy,
        )

    def close(self) -> None:
        """Closes every connection."""
        self._poll.close()
        for connection in self._by_number.values():
            connection.socket.close()


def received(connection: socket.socket) -> bytes:
    """Some bytes."""
    data = connection.recv(_READ)
    if not data:
        raise ConnectionError("the server closed a connection")
    return data


def length_of(head: bytes) -> tuple[bytes, int]:
    """The line of a head that says how long the body is, and what it says."""
    found = re.search(rb"\r\ncontent-length: *(\d+)\r\n", head, re.IGNORECASE)
    if found is None:
        raise ValueError("an answer without a Content-Length")
    return found[0], int(found[1])


def is_whole(data: bytes) -> bool:
    """Whether an answer with a Content-Length has come to its end."""
    head, end, body = data.partition(b"\r\n\r\n")
    return bool(end) and len(body) >= length_of(head + b"\r\n")[1]


def main(arguments: Sequence[str] | None = None) -> int:
    """One run, printed."""
    parser = argparse.ArgumentParser(description="Load a port on loopback at a fixed rate.")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--requests", type=Path, required=True, help="a file with their heads")
    parser.add_argument("--rate", type=float, required=True, help="requests per second")
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--connections", type=int, default=64)
    options = parser.parse_args(arguments)
    heads = [one + _END for one in options.requests.read_bytes().split(_END)[:-1]]
    generator = Generator(options.port, heads, options.connections)
    gc.disable()
    try:
        timing = generator.run(options.rate, options.seconds)
    finally:
        generator.close()
    print(json.dumps(asdict(timing)))
    return 0


if __name__ == "__main__":
    sys.exit(main())

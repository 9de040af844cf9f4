"""Writes down what came of a run: a table for the terminal, and `RESULTS.md`."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from bench.figures import BUSY, Bound, Profile, Ratio, Result, Series

# A generator that takes so much of its core may have been what was measured.
GENERATOR_LIMIT = 0.95
Line = tuple[str, ...]

_HEAD = (
    "work",
    "ours",
    "beside",
    "theirs",
    "ratio",
    "of the rounds",
    "by cost",
    "reach",
    "towards",
    "verdict",
)

_SERIES_HEAD = (
    "series",
    "median",
    "lowest",
    "highest",
    "spread",
    "µs",
    "server",
    "load",
    "dropped",
)


@dataclass(frozen=True)
class Run:
    """All that is known of a run."""

    when: str
    took: str
    rounds: int
    seconds: int
    machine: Mapping[str, str]
    versions: Mapping[str, str]
    results: Sequence[Result]

    @property
    def busy(self) -> list[Result]:
        """Works during which others took a good part of a core."""
        return [result for result in self.results if result.foreign_load > BUSY]


def figure(value: float, unit: str) -> str:
    """A figure as people read it."""
    if unit == "answers/s":
        return f"{value:,.0f}"
    return f"{value:.3g} {unit}" if value < 100 else f"{value:.0f} {unit}"


def table(results: Sequence[Result]) -> list[Line]:
    """Every figure that has a target or a peer."""
    lines: list[Line] = [_HEAD]
    for result in results:
        lines += [_ratio_line(ratio) for ratio in result.ratios]
        lines += [_bound_line(bound) for bound in result.bounds]
    return lines


def _ratio_line(ratio: Ratio) -> Line:
    return (
        ratio.work,
        figure(ratio.ours.median, ratio.ours.unit),
        ratio.peer.name,
        figure(ratio.peer.median, ratio.peer.unit),
        f"{ratio.value:.2f}x",
        f"{min(ratio.quotients):.2f}–{max(ratio.quotients):.2f}",
        "" if ratio.by_cost is None else f"{ratio.by_cost:.2f}x",
        _times(ratio.reach),
        _times(ratio.towards),
        ratio.verdict,
    )


def _bound_line(bound: Bound) -> Line:
    unit, values = bound.measured.unit, bound.measured.values
    return (
        bound.work,
        figure(bound.measured.median, unit),
        "",
        "",
        "",
        f"{figure(min(values), unit)}–{figure(max(values), unit)}",
        "",
        f"≤ {bound.at_most:g} {unit}",
        "",
        bound.verdict,
    )


def _times(target: float | None) -> str:
    return "" if target is None else f"{target:g}x"


def plain(lines: Sequence[Line]) -> str:
    """The table for a terminal."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    rows = ("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)
    return "\n".join(rows)


def markdown(lines: Sequence[Line]) -> str:
    """The table for a document; what was missed stands out."""
    head, *rows = lines
    rows = [(*row[:-1], _stressed(row[-1])) for row in rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ("---",) * len(head), *rows))


def _stressed(verdict: str) -> str:
    return f"**{verdict}**" if verdict.startswith("missed") else verdict


def document(run: Run) -> str:
    """`RESULTS.md`."""
    parts = [
        "# Results\n\nWritten by `make bench`; no figure here is typed by hand.",
        _circumstances(run),
        "## Figures\n\n" + markdown(table(run.results)),
        _picture(run),
        _method(run),
        *(_work(result) for result in run.results),
        _missed(run),
    ]
    return "\n\n".join(parts) + "\n"


def _circumstances(run: Run) -> str:
    facts = {"run": f"{run.when}, {run.took}", **run.machine, **run.versions}
    lines = [("", ""), *facts.items()]
    if not run.busy:
        warning = "No other process took a good part of a core during any of the works."
    else:
        names = "; ".join(result.title for result in run.busy)
        warning = f"**The machine was busy with other things** during: {names}."
    return f"{markdown(lines)}\n\n{warning}"


def _picture(run: Run) -> str:
    ratios = [ratio for result in run.results for ratio in result.ratios]
    told = "; ".join(
        f"{ratio.work} against {ratio.peer.name}: {ratio.value:.2f} times" for ratio in ratios
    )
    return f"![How many times as good as its peer the gateway is. {told}.](results.svg)"


def _method(run: Run) -> str:
    return f"""## Method

The server under test runs on one core; the load, and the ledger that answers it (nginx with a
file), on another. All are on loopback. {run.rounds} rounds of {run.seconds} s each, after a second
to get warm, in alternation: A B, B A, A B, … What counts is the median; a ratio is made within each
round, of neighbours in time, and then the median is taken. *Spread* is from the lowest round to the
highest, as a part of the median; *µs* is what one answer took of a core in the server, *by cost*
the ratio of those, which suffers least from other processes, and *server* and *load* are the cores
that they took. A round in which other processes took more than {BUSY} of a core was done again, as
far as time allowed; *dropped* says how many were.

The gateway runs as `python -m gateway serve` with its normal settings, counters and logs on: one
line per request, to a file. For hits the cache may keep replies for 60 s, as the peers' do. Tokens
are HS256. Before anything is measured each server must give the right answer, and each but nginx
must refuse a forged token; one wrong answer in a round ends the run.

nginx checks no token. It runs as well set up as it can be, with `sendfile` and `open_file_cache`,
and once more without those, as most people run it. HAProxy and Envoy check the token, HAProxy also
the user name; neither reads the rows. FastAPI does what the gateway does, without a cache. The
floor is no peer: a protocol on the gateway's own loop, uvloop, that reads a request and writes the
bytes of one answer of the gateway's, looking at nothing. No process with this loop can be faster;
what lies between is all that the gateway does. Beside misses there is what aiohttp's own server and
client come to that pass a reply on and look at nothing. The configurations of all are in
[`peers/`](peers)."""


def _work(result: Result) -> str:
    lines: list[Line] = [_SERIES_HEAD]
    lines += [_series_line(series) for series in result.series]
    others = (
        f"Before it the load average was {result.load_average:.2f}; during it other processes took "
        f"{result.foreign_load:.2f} of a core."
    )
    notes = [*result.notes, *_limits(result)]
    parts = [f"## {result.title}", result.method, markdown(lines), *notes, others]
    return "\n\n".join(parts)


def _series_line(series: Series) -> Line:
    values = (series.median, min(series.values), max(series.values))
    return (
        series.name,
        *(figure(value, series.unit) for value in values),
        f"{series.spread:.0%}",
        f"{series.cost:.1f}" if series.server_busy else "",
        f"{series.server_busy:.2f}" if series.server_busy else "",
        f"{series.load_busy:.2f}" if series.load_busy else "",
        str(series.dropped or ""),
    )


def _limits(result: Result) -> Iterator[str]:
    for series in result.series:
        if series.load_busy > GENERATOR_LIMIT:
            yield (
                f"With {series.name} the load generator took {series.load_busy:.2f} of its core: "
                "it may have been the limit."
            )


def _missed(run: Run) -> str:
    missed = [
        f"- {line[0]}{' against ' + line[2] if line[2] else ''}: {line[-1]}"
        for line in table(run.results)[1:]
        if "missed" in line[-1] or "short" in line[-1]
    ]
    parts = ["## What is missed, and where the time goes"]
    parts.append("\n".join(missed) or "Every target was reached.")
    profiles = [_profile(each.title, each.profile) for each in run.results if each.profile]
    parts += profiles or ["Run with `--profile`, this says in which functions the time goes."]
    return "\n\n".join(parts)


def _profile(title: str, profile: Profile) -> str:
    packages = ", ".join(f"{name} {share:.0%}" for name, share in profile.packages)
    lines: list[Line] = [("innermost function", "part of the samples")]
    lines += [(f"`{name}`", f"{share:.0%}") for name, share in profile.functions]
    return (
        f"### {title}\n\nThe kernel took {profile.kernel:.0%} of the gateway's time. By package, "
        f"of the samples: {packages}.\n\n{markdown(lines)}"
    )

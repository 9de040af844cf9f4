"""What the rounds come to: medians, ratios, and whether a target was met. No input, no output."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import ceil
from statistics import median

# With so much of a core taken by others, figures are of little use.
BUSY = 0.15


@dataclass(frozen=True)
class Shot:
    """One round of one contestant; `busy` and `foreign` are cores that were taken meanwhile."""

    value: float
    server_busy: float = 0.0
    load_busy: float = 0.0
    # By processes that have nothing to do with it.
    foreign: float = 0.0


@dataclass(frozen=True)
class Series:
    """The rounds of one contestant, all in the same unit."""

    name: str
    unit: str
    shots: tuple[Shot, ...]
    # Rounds that do not count, because other processes disturbed them.
    dropped: int = 0

    @property
    def values(self) -> list[float]:
        """The figure of each round, in the order they were run."""
        return [shot.value for shot in self.shots]

    @property
    def median(self) -> float:
        """What the series comes to."""
        return median(self.values)

    @property
    def spread(self) -> float:
        """The noise: from the lowest round to the highest, as a part of the median."""
        return (max(self.values) - min(self.values)) / self.median if self.median else 0.0

    @property
    def server_busy(self) -> float:
        """Cores that the server took."""
        return median(shot.server_busy for shot in self.shots)

    @property
    def cost(self) -> float:
        """For a series of rates: what one answer took of a core, in microseconds."""
        return median(1e6 * shot.server_busy / shot.value for shot in self.shots)

    @property
    def load_busy(self) -> float:
        """Cores that the load generator took; near 1 it is the generator that was measured."""
        return median(shot.load_busy for shot in self.shots)


@dataclass(frozen=True)
class Ratio:
    """Ours to a peer's, round by round, and what it should be: reached, and worked towards."""

    work: str
    ours: Series
    peer: Series
    reach: float | None = None
    towards: float | None = None
    # Where less is better (times), the quotient is turned round: more is always better.
    less_is_better: bool = False

    @property
    def quotients(self) -> list[float]:
        """How many times as good as the peer, in each round."""
        pairs = zip(self.ours.values, self.peer.values, strict=True)
        return [peer / ours if self.less_is_better else ours / peer for ours, peer in pairs]

    @property
    def value(self) -> float:
        """The median of the rounds."""
        return median(self.quotients)

    @property
    def by_cost(self) -> float | None:
        """The same by what an answer takes of a core: what others take of it changes it least."""
        known = self.ours.server_busy and self.peer.server_busy
        return self.peer.cost / self.ours.cost if known else None

    @property
    def is_met(self) -> bool:
        """Whether the target that must be reached is; one to work towards may be missed."""
        return self.reach is None or self.value >= self.reach

    @property
    def standing(self) -> str:
        """The same in a word: reached, missed, short of what it works towards, or noted."""
        if self.reach is None and self.towards is None:
            return "noted"
        if not self.is_met:
            return "missed"
        return "short" if self.towards is not None and self.value < self.towards else "reached"

    @property
    def verdict(self) -> str:
        """And with what is missing."""
        if self.reach is not None and self.standing == "missed":
            return f"missed by {part(1 - self.value / self.reach)}"
        if self.towards is not None and self.standing == "short":
            short = f"{part(1 - self.value / self.towards)} short of {self.towards:g}x"
            return short if self.reach is None else f"reached; {short}"
        return self.standing


@dataclass(frozen=True)
class Bound:
    """Something measured that must not be more than a limit."""

    work: str
    measured: Series
    at_most: float

    @property
    def is_met(self) -> bool:
        """Whether the median keeps the limit."""
        return self.measured.median <= self.at_most

    @property
    def verdict(self) -> str:
        """The same in words, with what is too much."""
        if self.is_met:
            return "reached"
        return f"missed by {part(self.measured.median / self.at_most - 1)}"


@dataclass(frozen=True)
class Profile:
    """Where time goes in a process: the kernel's part, and parts of the samples of its frames."""

    kernel: float
    packages: Sequence[tuple[str, float]]
    functions: Sequence[tuple[str, float]]


@dataclass
class Result:
    """What came of one work."""

    title: str
    method: str
    # The load average before it, and the cores that other processes took meanwhile.
    load_average: float = 0.0
    foreign_load: float = 0.0
    ratios: list[Ratio] = field(default_factory=list)
    bounds: list[Bound] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    profile: Profile | None = None

    @property
    def series(self) -> list[Series]:
        """Every series once."""
        found = [series for ratio in self.ratios for series in (ratio.ours, ratio.peer)]
        found += [bound.measured for bound in self.bounds]
        return [series for index, series in enumerate(found) if series not in found[:index]]

    @property
    def is_met(self) -> bool:
        """Whether every target was."""
        return all(ratio.is_met for ratio in self.ratios) and all(
            bound.is_met for bound in self.bounds
        )


def turns(names: Sequence[str], number: int) -> list[str]:
    """Who runs when: A B, B A, A B, ... so that nobody always has the earlier turn."""
    return list(names) if number % 2 == 0 else list(reversed(names))


def contest(
    contestants: Mapping[str, Callable[[], Shot]], rounds: int, unit: str, spare: int = 0
) -> dict[str, Series]:
    """Lets each have its rounds, in alternation.

    A round in which others took a good part of a core for anybody is done again for everybody, as
    long as there are `spare` ones; if there are none left, those count that were disturbed least.
    """
    calm: list[dict[str, Shot]] = []
    disturbed: list[dict[str, Shot]] = []
    while len(calm) < rounds and len(calm) + len(disturbed) < rounds + spare:
        order = turns(list(contestants), len(calm))
        found = {name: contestants[name]() for name in order}
        (disturbed if _disturbance(found) > BUSY else calm).append(found)
    counted = [*calm, *sorted(disturbed, key=_disturbance)[: rounds - len(calm)]]
    dropped = len(calm) + len(disturbed) - len(counted)
    return {
        name: Series(name, unit, tuple(found[name] for found in counted), dropped)
        for name in contestants
    }


def _disturbance(found: Mapping[str, Shot]) -> float:
    return max(shot.foreign for shot in found.values())


def part(value: float) -> str:
    """As people read it: a little is not nothing."""
    return f"{value:.0%}" if value >= 0.01 else f"{value:.2%}"


def series(name: str, unit: str, values: Sequence[float]) -> Series:
    """Plain figures as a series."""
    return Series(name, unit, tuple(Shot(value) for value in values))


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest of the values that at least this share of them does not exceed."""
    ordered = sorted(values)
    return ordered[max(0, ceil(share * len(ordered)) - 1)]

"""One worker on one core against two on two."""

from contextlib import ExitStack

from bench.figures import Ratio, Result
from bench.rows import envelope, identity
from bench.stage import HITS, MISSES, PATH, Stage, expect
from bench.wrk import Load, head, prepared


def doubled(stage: Stage, result: Result) -> None:
    """Hits and misses; with two workers the load and the ledger have no core to themselves."""
    alike = prepared(stage.folder / "workers.lua", [head(PATH, identity("alice"))], [0])
    _doubled(stage, result, "hits", HITS, alike)
    _doubled(stage, result, "misses", MISSES, stage.different(identity("alice")))


def _doubled(stage: Stage, result: Result, what: str, settings: dict[str, str], load: Load) -> None:
    one, two = f"1 worker, {what}", f"2 workers, {what}"
    with ExitStack() as stack:
        ledger = stack.enter_context(stage.ledger(envelope(["alice"] * 10), cores=stage.both))
        alone = stack.enter_context(stage.gateway(ledger, settings, name="one"))
        pair = stack.enter_context(
            stage.gateway(ledger, settings, name="two", workers=2, cores=stage.both)
        )
        expect(alone, PATH, identity("alice"))
        expect(pair, PATH, identity("alice"))
        found = stage.rates({one: (alone, load), two: (pair, load)}, cores=stage.both)
    ratio = Ratio(f"2 workers on 2 cores, {what}", found[two], found[one])
    result.ratios.append(ratio)
    result.notes.append(
        f"{what}: one worker took {found[one].server_busy:.2f} of a core, two took "
        f"{found[two].server_busy:.2f}, and the load beside them {found[two].load_busy:.2f}."
    )

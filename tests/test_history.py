"""Thousands of calls to a gateway that comes and goes, over a line that fails: all is explained."""

import asyncio
import os
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.history import WRITES, Call, Fate, Kind, LedgerState, Spell, fate, made_at
from tests.history_calls import Notebook
from tests.history_checks import violations
from tests.history_clients import Client
from tests.history_faults import Fault, FaultyProxy, Odds
from tests.history_world import Fleet, WitnessLedger

CLIENTS = 8
PATIENCE_S = 120.0
# With a number in HISTORY_SEED other calls, faults and troubles are chosen.
SEED = int(os.environ.get("HISTORY_SEED", "1"))

Trouble = Callable[[], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Life:
    """What was asked and answered, the ledger at the end, when two gateways served, what they had
    to say, and what befell the line.
    """

    calls: Sequence[Call]
    ledger: LedgerState
    spells: Sequence[Spell]
    said: str
    faults: Mapping[Fault, int]


async def troubles(
    fleet: Fleet, proxy: FaultyProxy, notebook: Notebook, total: int, chance: random.Random
) -> None:
    """Everything that may befall a gateway and its ledger, one after the other, between calls."""

    async def lose_ledger() -> None:
        await proxy.down()
        await notebook.reaches(len(notebook.calls) + total // 40)
        await proxy.up()

    all_of_them: list[Trouble] = [
        fleet.replace,
        fleet.lose_supervisor,
        fleet.lose_worker,
        fleet.lose_worker,
        lose_ledger,
        lose_ledger,
    ]
    for number, befall in enumerate(chance.sample(all_of_them, len(all_of_them)), start=1):
        await notebook.reaches(total * number // (len(all_of_them) + 1))
        await befall()


async def lived(seed: int, total: int, folder: Path) -> Life:
    """So many calls at least, and all the troubles."""
    ledger, notebook, over = WitnessLedger(), Notebook(), asyncio.Event()
    async with (
        asyncio.timeout(PATIENCE_S),
        ledger.run() as port,
        FaultyProxy(port, random.Random(f"{seed} faults"), Odds()).run() as proxy,
        AsyncExitStack() as stack,
        asyncio.TaskGroup() as tasks,
    ):
        fleet = Fleet(stack, folder, proxy.url)
        await fleet.start()
        chances = [random.Random(f"{seed} client {index}") for index in range(CLIENTS)]
        clients = [Client(fleet.url, notebook, chance) for chance in chances]
        calling = [tasks.create_task(client.run(total, over)) for client in clients]
        await troubles(fleet, proxy, notebook, total, random.Random(f"{seed} troubles"))
        over.set()
        await asyncio.wait(calling)
        await fleet.stop()
    return Life(notebook.calls, ledger.state(), fleet.spells, fleet.said, proxy.made)


# Which part of all calls at least came to what: without them an explanation means little.
LEAST = {
    "reads done": 0.3,
    "writes done": 0.1,
    "deletes done": 0.002,
    "reads unknown": 0.005,
    "writes unknown": 0.005,
    "writes certainly not sent": 0.005,
    "writes refused": 0.005,
    "writes repeated": 0.01,
    "reads answered from what was kept": 0.03,
    "reads in times of one gateway": 0.1,
}


def shares(life: Life) -> Mapping[str, float]:
    """What the calls came to, as parts of all of them."""
    found: Counter[str] = Counter()
    repeats = Counter(call.write for call in life.calls if call.kind in WRITES)
    for call in life.calls:
        is_write = call.kind in WRITES
        found[f"{'writes' if is_write else 'reads'} {fate(call).value}"] += 1
        found["deletes done"] += call.kind is Kind.DELETE and fate(call) is Fate.DONE
        found["writes repeated"] += repeats[call.write] > 1
        found["reads in times of one gateway"] += (
            not is_write and made_at(call, life.spells) == call.began
        )
    found["reads answered from what was kept"] = life.said.count('"cache":"hit"')
    return {name: count / len(life.calls) for name, count in found.items()}


@pytest.mark.parametrize(("nth", "total"), [(0, 3000), (1, 1500)])
async def test_every_call_of_a_troubled_time_is_explained(
    nth: int, total: int, tmp_path: Path
) -> None:
    seed = SEED + nth
    print(f"HISTORY_SEED={seed}")
    life = await lived(seed, total, tmp_path)
    found = violations(life.calls, life.ledger, life.spells)
    assert not found, f"HISTORY_SEED={seed}: {len(found)} violations, such as {found[:5]}"
    assert "Traceback" not in life.said
    assert all(life.faults.get(fault, 0) > 1 for fault in Fault), (seed, life.faults)
    came = shares(life)
    missing = [name for name, least in LEAST.items() if came.get(name, 0.0) < least]
    assert not missing, f"HISTORY_SEED={seed}: too few {missing}: {came}"

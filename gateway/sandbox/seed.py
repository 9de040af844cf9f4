"""What the sandbox starts with: the same rows, ids and times each time, made through the store."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid5

from gateway.sandbox.store import Stamp, Store

USERS = ("alice", "bob", "carol")
ADMIN = "admin"
SERVICE = "service"

# The organization, ledger, ids and values of the rates document.
ORGANIZATION_ID = "5f3a4c55-8b28-4276-bed7-f7c8a4bb44e8"
LEDGER_ID = "77b0fb8b-1bd9-4810-9c6d-7e80064fab0c"
RATE_IDS = ("d0aa3885-0f9d-4856-9ca8-7da4fe6e2a95", "8d47ade1-dfe3-4036-9000-a0ff045715e4")

_NAMESPACE = UUID(LEDGER_ID)
_START = datetime(2024, 1, 28, 21, 12, tzinfo=UTC)
_STEP = timedelta(minutes=7)
_ROUNDS = 33

Action = dict[str, str | None]


def seed(store: Store) -> None:
    """Fill an empty store: about two hundred rows of three users, and the two documented rates."""
    for number, action in enumerate(_actions()):
        actor = ADMIN if action["type"] == "balance_update" else SERVICE
        stamp = Stamp(_uuid(f"row-{number}"), _START + _STEP * number, actor)
        store.register(action, stamp)
    _seed_rates(store)


def _uuid(name: str) -> str:
    return str(uuid5(_NAMESPACE, name))


def _actions() -> Iterator[Action]:
    for user in USERS:
        yield _deposit(user, "USD", "250000.00", f"opening-{user}-usd")
        yield _deposit(user, "BTC", "12.50000000", f"opening-{user}-btc")
        yield _deposit(user, "ETH", "100.000000000000000000", f"opening-{user}-eth")
    for number in range(_ROUNDS):
        yield from _round(number)
    yield from _pending_deposits()


def _round(number: int) -> Iterator[Action]:
    first, second, third = (USERS[(number + place) % 3] for place in range(3))
    other = USERS[number // 3 % 3]
    yield from _trade(number, seller=first, buyer=second)
    if number % 3 == 0:
        yield from _transfer(number, sender=other, recipient=USERS[(number // 3 + 1) % 3])
    if number % 3 == 1:
        yield _withdrawal(number, other)
    if number % 4 == 2:
        yield _deposit(third, "USD", f"{1000 + 25 * number}.00", f"wire-{number}")
    if number % 5 == 4:
        yield _correction(number, first)


def _trade(number: int, seller: str, buyer: str) -> Iterator[Action]:
    coin, ticker, price = _MARKETS[number % len(_MARKETS)]
    size = number + 1
    quantity, money = f"0.{size:02d}000000", f"{size * price // 100}.{size * price % 100:02d}"
    legs = (
        (seller, f"-{quantity}", coin),
        (buyer, quantity, coin),
        (buyer, f"-{money}", "USD"),
        (seller, money, "USD"),
    )
    for leg, (username, amount, currency) in enumerate(legs):
        action = _action("trade", username, currency, amount)
        yield {**action, **_trade_fields(number, leg, ticker)}


# Coin, ticker, and the price of a whole coin in USD.
_MARKETS = (("BTC", "BTC-USD", 69_000), ("ETH", "ETH-USD", 2_300))


def _trade_fields(number: int, leg: int, ticker: str) -> Action:
    provider = number % 2 + 1
    return {
        "ticker": ticker,
        "fee": "0.00",
        "order_id": f"ord-{1001 + number}",
        "order_coid": f"client-{1001 + number}",
        "order_status": "filled",
        "trade_id": f"trade-{1001 + number}",
        "settlement_sequence": str(4 * number + leg + 1),
        "lp_id": f"lp-{provider}",
        "lp_name": ("Northern Liquidity", "Harbour Markets")[provider - 1],
    }


def _transfer(number: int, sender: str, recipient: str) -> Iterator[Action]:
    amount = f"{number + 1}.500000000000000000"
    wallets: Action = {
        "wallet_id": f"wallet-{sender}-eth",
        "wallet_address": f"sandbox-{sender}-eth",
        "recepient_wallet_address": f"sandbox-{recipient}-eth",
        "wallet_type": "custody",
        "txid": _uuid(f"transfer-{number}").replace("-", ""),
    }
    yield {**_action("transfer", sender, "ETH", f"-{amount}"), **wallets}
    yield {**_action("transfer", recipient, "ETH", amount), **wallets}


def _deposit(username: str, currency: str, amount: str, reference: str) -> Action:
    references: Action = {
        "external_id": reference,
        "txid": _uuid(reference).replace("-", ""),
        "wallet_address": f"sandbox-{username}-{currency.lower()}",
    }
    return {**_action("deposit", username, currency, amount), **references}


def _withdrawal(number: int, username: str) -> Action:
    status = ("completed", "failed", "completed", "canceled")[number // 3 % 4]
    action = _action("withdrawal", username, "BTC", f"-0.{number + 1:02d}500000")
    return {**action, "status": status, "wallet_address": f"sandbox-{username}-btc"}


def _correction(number: int, username: str) -> Action:
    sign = "-" if number % 2 else ""
    action = _action("balance_update", username, "USD", f"{sign}{number}.25")
    return {**action, "comment": f"Correction {number} after reconciliation"}


def _pending_deposits() -> Iterator[Action]:
    incoming = (
        ("alice", "BTC", "0.25000000"),
        ("bob", "ETH", "3.000000000000000000"),
        ("alice", "USD", "1500.00"),
        ("alice", "BTC", "0.10000000"),
    )
    for number, (username, currency, amount) in enumerate(incoming):
        deposit = _deposit(username, currency, amount, f"incoming-{number}")
        yield {**deposit, "status": "pending"}


def _action(kind: str, username: str, currency: str, amount: str) -> Action:
    return {"type": kind, "username": username, "currency": currency, "amount": amount}


def _seed_rates(store: Store) -> None:
    first = {
        "baseInstrumentCode": "BRL",
        "counterInstrumentCode": "BTC",
        "amount": 35000000,
        "scale": 2,
        "source": "Chainlink database",
        "status": {"code": "My custom ACTIVE code", "description": "My description"},
        "metadata": {"updateCycle": 300, "urgent": True},
    }
    second = {
        "baseInstrumentCode": "BTC",
        "counterInstrumentCode": "USD",
        "amount": 6900000,
        "scale": 2,
        "source": "Coinmarketcap",
        "metadata": {"anyKey": "anyValue"},
    }
    for rate_id, rate in zip(RATE_IDS, (first, second), strict=True):
        store.create_rate((ORGANIZATION_ID, LEDGER_ID), rate, Stamp(rate_id, _START, ADMIN))

"""A clock driven by hand, for gateways that are spoken to over HTTP."""

from dataclasses import dataclass
from functools import partial

import pytest

from gateway import app
from gateway.cache import CachedLedger


@dataclass
class Clock:
    """The time that the caches of gateways made from here on go by, in seconds."""

    now: float = 1000.0

    def rule(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Takes over; time stands still unless it is put on."""
        ruled = partial(CachedLedger, now=lambda: self.now)
        monkeypatch.setattr(app, "CachedLedger", ruled)

"""An engine that uses graphs as if it could: they stand on tapes here."""

import pytest

from ramole_core.engine import graphs
from ramole_core.engine.graphs import Graphs

from .tape import Tapes
from .tiny import ask

ROUTED = {"gate": "mole", "router": "r1", "tau": 0.5, "max_new_tokens": 24}
MIXED = [  # stay together for many steps, under one pack
    ask("many hands", 0, 1, gate="mixture", max_new_tokens=30),
    ask("weights of its own", 2, 0, gate="weights", w0=1.5, w1=-0.5, max_new_tokens=9),
    ask("routed", 0, 1, 2, **ROUTED),
    ask("base only", max_new_tokens=28),
    ask("fused", 1, 2, gate="fusion", max_new_tokens=26),
    ask("routed as well", 2, 1, **ROUTED),
]


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    """Answers of tests are short."""
    monkeypatch.setattr(graphs, "PATIENCE", 2)


@pytest.fixture
def off(caplog):
    """Checks that graphs were given up, once, for a reason."""

    def check(engine, why):
        said = [r.getMessage() for r in caplog.records if r.name == graphs.__name__]
        assert len(said) == 1 and why in said[0]
        assert engine.runner.graphs._new_recorder is None
        assert not engine.runner.graphs._graphs

    return check


def record(engine, recorder=None):
    """Lets the engine use graphs as if it could; the recorder."""
    tapes = recorder or Tapes()
    engine.runner.graphs = Graphs(engine.runner._run, lambda: tapes, 1e-3)
    return tapes


def close(found, wanted):
    """The same answers; weights up to the order of sums."""
    assert [f.text for f in found] == [w.text for w in wanted]
    for f, w in zip(found, wanted, strict=True):
        assert f.weights == pytest.approx(w.weights, abs=1e-5)
        assert f.completion_tokens == w.completion_tokens
    return True

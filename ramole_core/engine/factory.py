"""Builds an engine from settings: load, attach, bank, engine."""

import logging
from typing import Any, Final

from ramole_core.engine.engine import Engine
from ramole_core.engine.model import load_base
from ramole_core.mole.attach import attach
from ramole_core.mole.bank import AdapterBank, AdapterSource
from ramole_core.mole.router import RouterSource
from ramole_core.settings import Settings

# For `sys.setswitchinterval`, the process's own decision: how long a busy thread may keep the
# interpreter from the engine's, which asks for it at every step of the model. With Python's own
# 0.005 whole jobs of a small model took 4 % longer.
SWITCH_SECONDS: Final = 0.0005

log = logging.getLogger(__name__)


def build_engine(
    settings: Settings, adapters: AdapterSource, routers: RouterSource, **watchers: Any
) -> Engine:
    """An engine that is ready to `start`; `watchers` are Engine's. Raises ConfigError."""
    base = load_base(settings)
    log.info("base model %s on %s, %s (%s)", base.name, base.device, base.dtype, base.reason)
    mole = attach(base.model)
    bank = AdapterBank(
        base.targets,
        settings.bank_size,
        adapters,
        base.device,
        base.dtype,
        mole.groups,
        routers,
    )
    engine = Engine(base, mole, bank, settings, **watchers)
    level = logging.WARNING if engine.plan.warnings else logging.INFO
    log.log(level, "memory: %s", engine.plan)
    return engine

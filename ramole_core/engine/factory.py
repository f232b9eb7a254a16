"""Builds an engine from settings: load, attach, bank, engine."""

import logging
from typing import Any

from ramole_core.engine.engine import Engine
from ramole_core.engine.model import load_base
from ramole_core.mole.attach import attach
from ramole_core.mole.bank import AdapterBank, AdapterSource
from ramole_core.mole.router import RouterSource
from ramole_core.settings import Settings

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

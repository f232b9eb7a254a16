"""`python -m worker`: one worker process. Settings come from the environment and ramole.toml.

Exit codes: 0 stopped by SIGTERM or SIGINT; 5 Redis or the store out of reach; 78 a setting is
wrong (a supervisor should not start it again).
"""

import logging
import sys
from typing import Final

from celery.signals import setup_logging, worker_shutting_down

from ramole_core.engine.factory import SWITCH_SECONDS
from ramole_core.errors import ConfigError, RamoleError
from ramole_core.settings import Settings
from worker import logs
from worker.app import make_app
from worker.services import open_services
from worker.tasks import add_tasks

logger = logging.getLogger("worker")

EX_CONFIG: Final = 78


def main() -> int:
    """Runs a worker until it is told to stop."""
    try:
        settings = Settings.load()
        logs.configure(settings.log_level)
        app = make_app(settings)
        services = open_services(settings, app.send_task)
    except RamoleError as e:
        logging.basicConfig()
        logger.error("cannot start: %s", e)
        return EX_CONFIG if isinstance(e, ConfigError) else e.exit_code
    add_tasks(app, services)
    setup_logging.connect(lambda **_: None, weak=False)  # ours stays
    worker_shutting_down.connect(lambda **_: services.draining.set(), weak=False)
    sys.setswitchinterval(SWITCH_SECONDS)
    services.start()
    logger.info("worker ready")
    worker = app.Worker(
        quiet=True, without_gossip=True, without_mingle=True, without_heartbeat=True
    )  # nothing is published, nobody reads it
    try:
        worker.start()
    finally:
        services.stop()
    return int(worker.exitcode or 0)


if __name__ == "__main__":
    sys.exit(main())

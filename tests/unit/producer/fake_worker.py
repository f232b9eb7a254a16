"""Stands for `python -m worker` under the supervisor: announces itself, beats, dies when told.

`python fake_worker.py [config]`: with `config` it finds its settings wrong.
"""

import os
import signal
import sys
import threading
import time

from redis import Redis

from ramole_core import keys, messages
from ramole_core.settings import Settings
from ramole_core.store import open_store


def main() -> int:
    """Beats until SIGTERM."""
    if "config" in sys.argv:
        print(
            '{"level": "error", "message": "cannot start: RAMOLE_MODEL=x: no such model"}',
            flush=True,
        )
        return 78
    settings = Settings.load()
    redis = Redis.from_url(settings.redis_url)
    open_store(settings).create(keys.BASE, b"{}")
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda signum, frame: stop.set())
    while not stop.wait(0.02):
        redis.zadd(messages.WORKERS, {f"fake-{os.getpid()}": time.time()})
    print("stopped in order", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""`ramole up` with the fake worker: `python run_up.py HOME NUM_WORKERS [worker arguments]`."""

import sys
from pathlib import Path

from producer.embedded.supervisor import Supervisor
from ramole_core.errors import RamoleError
from ramole_core.settings import Settings

WORKER = Path(__file__).with_name("fake_worker.py")

if __name__ == "__main__":
    argv = [sys.executable, str(WORKER), *sys.argv[3:]]
    settings = Settings.load(home=Path(sys.argv[1]))
    try:
        Supervisor(settings, int(sys.argv[2]), argv, grace_seconds=10).run()
    except RamoleError as e:
        print(f"ramole: error: {e}", file=sys.stderr)
        sys.exit(e.exit_code)

"""`ramole up` with another worker command: python -m tests.integration.run_up WORKER_ARGV…"""

import sys

from producer.embedded.supervisor import Supervisor
from ramole_core.settings import Settings

if __name__ == "__main__":
    Supervisor(Settings.load(), worker_argv=[sys.executable, *sys.argv[1:]]).run()

"""One of many producer processes: as many jobs of one prompt each as it is told.

python -m benchmarks.load.producer NAME COUNT
"""

import sys

from producer.client import Client
from ramole_core.settings import Settings

if __name__ == "__main__":
    name, count = sys.argv[1], int(sys.argv[2])
    client = Client(Settings.load())
    for i in range(count):
        client.submit([f"prompt {i}"], job_id=f"{name}-{i}")

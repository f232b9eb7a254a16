"""The producer: command line, Python client, dataset readers, the embedded system's supervisor.

Runs without torch. `Client` is the Python API; the commands are written with it.
"""

from producer.client import Client

__all__ = ["Client"]

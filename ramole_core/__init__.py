"""The RAMoLE library: stores, adapters, retrieval, the mixture of LoRA experts, the engine.

Knows torch (in the rooms that compute), knows no queue and no command line.
"""

__version__ = "0.1.0"

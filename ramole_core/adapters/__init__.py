"""Adapters: the upload gate, the registry of versions, the weights on disk and in memory."""

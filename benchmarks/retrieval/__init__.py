"""Retrieval on the released prompts, beside the published rows: see `__main__`."""

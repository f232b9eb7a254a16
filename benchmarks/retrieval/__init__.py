"""`python -m benchmarks.retrieval`: retrieval on the released prompts, beside the published rows."""

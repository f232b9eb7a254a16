"""The whole product against its own engine, on the same prompts."""

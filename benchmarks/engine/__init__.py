"""The engine's speed beside Hugging Face `generate`, PEFT, the published formula and itself."""

"""The embedded system: one folder, a bundled Redis-compatible server, supervised workers."""

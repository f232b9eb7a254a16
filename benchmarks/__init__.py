"""Programs that measure. Each prints a table and, with --json PATH, writes what it measured."""

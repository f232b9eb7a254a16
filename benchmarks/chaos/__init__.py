"""The whole product under load while a seeded script does harm to its parts."""

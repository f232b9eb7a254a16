"""Object stores: one protocol, a directory and any S3 server behind it."""

from ramole_core.settings import Settings
from ramole_core.store.base import ObjectInfo, ObjectStore

__all__ = ["ObjectInfo", "ObjectStore", "open_store"]


def open_store(settings: Settings) -> ObjectStore:
    """The store that the settings name. Connects at the first call, not here."""
    location = settings.store_location
    if location.startswith("s3://"):
        from ramole_core.store.minio import MinioStore

        return MinioStore.from_settings(settings)
    from ramole_core.store.directory import DirectoryStore

    return DirectoryStore.from_location(location)

"""The data folder of the embedded system, before anything under it is looked at."""

from ramole_core.errors import UnavailableError
from ramole_core.settings import Settings


def check_data_folder(settings: Settings) -> None:
    """Raises UnavailableError when the store is to lie under a folder that does not exist."""
    if not settings.store_url and not settings.home.is_dir():
        raise UnavailableError(
            f"the data folder {settings.home} does not exist; start it with `ramole up`"
        )

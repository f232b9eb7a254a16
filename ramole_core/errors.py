"""Every error this system raises on purpose, under one root.

`code` is the stable word that stands in JSON outputs and error records; `exit_code` is what the
command line exits with (docs/formats.md lists both). Messages are one line that says what, where,
the limit and the remedy, and never carry a secret. What strangers wrote goes into them as `repr` or
`printable` gives it.
"""


def printable(text: str) -> str:
    """`text` on one line: what a terminal obeys (controls, marks that turn text) is escaped."""
    return text if text.isprintable() else "".join(map(_printable, text))


def _printable(character: str) -> str:
    return character if character.isprintable() else repr(character)[1:-1]


class RamoleError(Exception):
    """Root of all errors raised on purpose. Raised itself never."""

    code = "error"
    exit_code = 1


class InvalidInputError(RamoleError):
    """Raised when an argument, option, dataset or message is not acceptable as given."""

    code = "invalid_input"
    exit_code = 2


class ConfigError(InvalidInputError):
    """Raised when a setting is unknown or its value is not acceptable."""

    code = "config"


class AdapterRefusedError(RamoleError):
    """Raised when an uploaded adapter breaks a rule of the gate. `reason` is a stable word; the
    message may quote the upload, and is made printable."""

    code = "adapter_refused"
    exit_code = 3

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(printable(message))
        self.reason = reason


class NotFoundError(RamoleError):
    """Raised when a job, adapter, router, encoder or file does not exist."""

    code = "not_found"
    exit_code = 4


class UnavailableError(RamoleError):
    """Raised when Redis, the object store or every worker is out of reach."""

    code = "unavailable"
    exit_code = 5


class StoreUnavailableError(UnavailableError):
    """Raised when the object store does not answer, or refuses the credentials."""

    code = "store_unavailable"


class BrokerUnavailableError(UnavailableError):
    """Raised when Redis does not answer, or refuses the credentials."""

    code = "broker_unavailable"


class TooLargeError(RamoleError):
    """Raised when an object is too large to be created in one conditional write."""

    code = "too_large"


class ConflictError(RamoleError):
    """Raised when something that may exist once exists already with other content."""

    code = "conflict"
    exit_code = 6


class JobFailedError(RamoleError):
    """Raised when a job that was waited for ended with failures or was cancelled."""

    code = "job_failed"
    exit_code = 7


class TimedOutError(RamoleError):
    """Raised when a wait with a limit reached it."""

    code = "timed_out"
    exit_code = 8


class PromptError(RamoleError):
    """Raised when one prompt cannot be answered. Becomes the `error` of its result record."""

    code = "prompt_failed"

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code

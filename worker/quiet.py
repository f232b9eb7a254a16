"""Either any number of threads prepare prompts, or one prompt runs alone.

What is prepared beside a prompt that is to be alone could kill the process, and the prompt would be
blamed. The engine takes the lock (`acquire`, `release`); who reads, embeds or tokenises does it
within `preparing`. Whoever comes while the engine waits or has it waits in turn, so `preparing`
must not be nested.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

SIGN_OF_LIFE_SECONDS: Final = 1.0


class Quiet:
    """One for a process. `num_preparing`: for tests."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._is_wanted = False  # by the engine, which has it once nobody prepares
        self.num_preparing = 0

    def acquire(self) -> bool:
        """Waits until nobody prepares. For one thread."""
        with self._changed:
            self._is_wanted = True
            self._changed.wait_for(lambda: not self.num_preparing)
        return True

    def release(self) -> None:
        """The others go on."""
        with self._changed:
            self._is_wanted = False
            self._changed.notify_all()

    def locked(self) -> bool:
        """True while a prompt runs alone."""
        with self._changed:
            return self._is_wanted and not self.num_preparing

    @contextmanager
    def preparing(self, on_wait: Callable[[], object] = lambda: None) -> Iterator[None]:
        """`on_wait` is called now and then while a prompt runs alone."""
        with self._changed:
            while self._is_wanted:
                self._changed.wait(SIGN_OF_LIFE_SECONDS)
                on_wait()
            self.num_preparing += 1
        try:
            yield
        finally:
            with self._changed:
                self.num_preparing -= 1
                self._changed.notify_all()

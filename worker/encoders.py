"""The encoders this worker serves: the one in use, and older ones for the jobs that pin them.

Each version has its own thread, vectors and index; vectors of two versions never meet. A version
that comes into use is loaded and its index built while the one before goes on answering; one that
cannot be loaded changes nothing. Whoever uses a version holds it; beyond `max_loaded` the version
unused for longest is let go, never one that is held or in use.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

from ramole_core.activations import Activations
from ramole_core.adapters.ref import AdapterRef
from ramole_core.adapters.registry import Registry
from ramole_core.engine.choice import CascadeRule
from ramole_core.errors import PromptError, RamoleError, UnavailableError
from ramole_core.retrieval.encoder import Encoder
from ramole_core.retrieval.index import Match
from ramole_core.retrieval.retriever import Query, Retriever
from ramole_core.retrieval.vectors import VectorShelf
from ramole_core.store import ObjectStore
from worker.encoding import EncoderService, OnBatch
from worker.quiet import Quiet

logger = logging.getLogger(__name__)

MAX_LOADED: Final = 3
RETRY_SECONDS: Final = 60.0  # a version that could not be loaded is not tried again before


@dataclass(frozen=True)
class Serving:
    """What answers for one encoder version. `tau` is the temperature of its retrieval prior, `rule`
    that of gate `cascade`; None: nobody measured how sure the adapters are."""

    service: EncoderService
    shelf: VectorShelf
    retriever: Retriever
    tau: float
    rule: CascadeRule | None


@dataclass
class _Loaded:
    """A version in memory, and what it takes to share it."""

    serving: Serving
    num_users: int = 0
    built: bool = False  # the index holds all adapters of some moment
    building: threading.Lock = field(default_factory=threading.Lock)


@dataclass(frozen=True)
class _Failure:
    message: str
    again_at: float


class Encoders:
    """Thread-safe map from encoder version to what serves it; starts and stops the threads."""

    def __init__(
        self,
        store: ObjectStore,
        registry: Registry,
        activations: Activations,
        load: Callable[[str], Encoder],
        first: Encoder,
        draining: threading.Event,
        quiet: Quiet | None = None,
        on_batch: OnBatch = lambda version, claims: None,
        max_loaded: int = MAX_LOADED,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._registry = registry
        self._activations = activations
        self._load = load
        self._draining = draining
        self._quiet, self._on_batch = quiet or Quiet(), on_batch  # see EncoderService
        self._max_loaded = max_loaded
        self._now = now
        self._loading = threading.Lock()  # held while one is loaded: nobody loads it twice
        self._failures: dict[str, _Failure] = {}  # under that lock
        self._lock = threading.Lock()  # guards the two below
        self._loaded: dict[str, _Loaded] = {}  # the one unused for longest first
        self._active = first.version
        self._add(first)

    @contextmanager
    def active(self) -> Iterator[Serving]:
        """The version in use, held until the block ends."""
        loaded = self._held(None)
        assert loaded is not None, "the version in use is never let go"
        try:
            yield loaded.serving
        finally:
            self._release(loaded)

    @contextmanager
    def get(self, version: str) -> Iterator[Serving]:
        """Any version, loaded and with its index when it was not; held until the block ends.

        Raises PromptError('encoder_unavailable') when it cannot be loaded, UnavailableError on an
        outage.
        """
        loaded = self._held(version)
        if loaded is None:
            with self._loading:
                loaded = self._held(version) or self._newly_loaded(version)
        try:
            self._build(loaded)
            yield loaded.serving
        finally:
            self._release(loaded)

    def refresh(self) -> None:
        """Follows the log of activations; returns when the version in use is the one served, or
        cannot be."""
        wanted = self._activations.active().encoder
        if wanted in ("", self._active):
            return
        try:
            with self.get(wanted), self._lock:
                self._active = wanted
        except PromptError:  # logged; the one before goes on
            return
        logger.info("encoder %s is in use now", wanted)

    def search(self, queries: list[Query]) -> list[list[Match]]:
        """Retrieval with the version in use."""
        with self.active() as serving:
            return serving.retriever.search(queries)

    def describe(self, ref: AdapterRef, samples: list[str]) -> None:
        """Makes and stores an adapter's vector under the version in use. Raises PromptError."""
        with self.active() as serving:
            serving.shelf.describe(ref, samples)

    def have_moved_since(self, moment: float) -> bool:
        """False when a thread has been at the same batch since that time (monotonic clock)."""
        return all(each.idle or each.progress_at > moment for each in self._services())

    def stop(self) -> None:
        """Ends all threads; calls still waiting fail."""
        for service in self._services():
            service.stop()

    def _services(self) -> list[EncoderService]:
        with self._lock:
            return [loaded.serving.service for loaded in self._loaded.values()]

    def _held(self, version: str | None) -> _Loaded | None:
        """The version (None: the one in use) if it is loaded; it counts as used last."""
        with self._lock:
            version = version or self._active
            loaded = self._loaded.pop(version, None)
            if loaded is not None:
                self._loaded[version] = loaded
                loaded.num_users += 1
            return loaded

    def _release(self, loaded: _Loaded) -> None:
        with self._lock:
            loaded.num_users -= 1
        self._let_go()

    def _newly_loaded(self, version: str) -> _Loaded:
        """Loads and holds. Failures are remembered, so that many shards do not try in a row."""
        before = self._failures.get(version)
        if before is None or before.again_at <= self._now():
            try:
                return self._add(self._load(version), num_users=1)
            except UnavailableError:
                raise
            except RamoleError as e:
                message = f"encoder {version}: {e}"
                if before is None or before.message != message:
                    logger.error("cannot be loaded: %s", message)
                before = _Failure(message, self._now() + RETRY_SECONDS)
                self._failures[version] = before
        raise PromptError("encoder_unavailable", before.message)

    def _add(self, encoder: Encoder, num_users: int = 0) -> _Loaded:
        service = EncoderService(encoder, self._quiet, self._on_batch)
        shelf = VectorShelf(
            self._store, encoder.version, service.encode, service.width, encoder.vectors
        )
        retriever = Retriever(self._registry, shelf, service.encode, service.width)
        scale = encoder.confidence
        rule = None if scale is None else CascadeRule.calibrated(scale.floor, scale.spread)
        loaded = _Loaded(Serving(service, shelf, retriever, encoder.tau, rule), num_users)
        service.start()
        with self._lock:
            self._loaded[encoder.version] = loaded
        self._let_go()
        logger.info("encoder %s loaded, %d dimensions", encoder.version, service.width)
        return loaded

    def _build(self, loaded: _Loaded) -> None:
        """Fills the index once, before the first search; whoever comes meanwhile waits."""
        with loaded.building:
            if loaded.built:
                return
            for ref in sorted(self._registry.active().values()):
                if self._draining.is_set():
                    raise UnavailableError("the worker is stopping")
                loaded.serving.retriever.prepare([ref])
            loaded.built = True

    def _let_go(self) -> None:
        """Unloads what is idle, unused for longest first, until `max_loaded` are left."""
        with self._lock:
            idle = [v for v, one in self._loaded.items() if not one.num_users and v != self._active]
            surplus = idle[: max(0, len(self._loaded) - self._max_loaded)]
            gone = [self._loaded.pop(version) for version in surplus]
        for loaded in gone:
            loaded.serving.service.stop()
        for version in surplus:
            logger.info("encoder %s is let go", version)

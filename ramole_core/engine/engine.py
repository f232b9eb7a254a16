"""The coordinator: takes prompts from many threads, one thread owns the model.

`submit(request) -> Future[Generation]`. Continuous batching: waiting prompts enter while others
run, as slots become free (see Scheduler for when and who); every step is one forward for all that
run; what has its answer leaves at once.
Guarantees: every future ends in an answer or an exception, unless a device call never returns
(watchers: `progress_at`); a prompt that cannot be answered, an adapter or router that cannot be
loaded and an error in a step are charged to the prompts concerned alone (PromptError); out of
memory shrinks the batch. In float32 greedy answers do not depend on the neighbours, the batch size
or the order of admission, and sampled ones only on the request's seed; coarser formats round
differently in batches of other shapes. A lost device and a panic end the engine: all fails with
UnavailableError, and only a new process helps. Without `start`, `step` drives the engine from the
caller's thread (tests).
"""

import logging
import threading
import time
from collections.abc import Callable, Hashable
from collections.abc import Sequence as Many
from concurrent.futures import InvalidStateError
from contextlib import suppress
from typing import Final

import torch

from ramole_core.engine.admission import Admission
from ramole_core.engine.cascade import Cascade
from ramole_core.engine.device import num_cpus
from ramole_core.engine.failures import Failure
from ramole_core.engine.memory import memory_plan
from ramole_core.engine.model import LoadedBase
from ramole_core.engine.request import GenerationFuture, GenerationRequest
from ramole_core.engine.retries import Retries
from ramole_core.engine.runner import NewToken, Runner
from ramole_core.engine.sampling import NO_TOKEN
from ramole_core.engine.scheduler import Scheduler
from ramole_core.engine.sequence import Sequence
from ramole_core.engine.slots import Slots
from ramole_core.engine.stopping import StopRule
from ramole_core.engine.watchers import Quiet, Watchers
from ramole_core.errors import PromptError, RamoleError, UnavailableError
from ramole_core.mole.attach import MoleModel
from ramole_core.mole.bank import AdapterBank
from ramole_core.settings import Settings

log = logging.getLogger(__name__)

IDLE_TICK_SECONDS: Final = 0.5  # how often an idle engine shows that it lives
LOAD_TICK_SECONDS: Final = 0.02  # how often one that waits for adapters looks for newcomers
MAX_LOAD_SECONDS: Final = 600.0  # a load that takes longer is taken for one that never ends
STOP_SECONDS: Final = 60.0
# Of the slots, free before newcomers enter: on CPUs few large prefills are faster than many small
# ones (answers of 4 to 128 tokens: 1.11 x in float32, 1.06 x in bfloat16, 2 cores).
REFILL_SHARE: Final = {"cpu": 0.25}


class Engine:
    """See the module's docstring.

    For watchers (any thread may read): `progress_at` clock time of the last finished forward, load
    or idle tick, standing still once the engine has ended or a load takes MAX_LOAD_SECONDS; `idle`;
    `num_prompts` answered or failed (under gate `cascade` counted once, at the end of the first
    pass), `num_generated_tokens`, `num_steps`. `plan` says who gets how much memory. `on_running`
    and `quiet` are those of Watchers.
    Raises ConfigError when the model cannot be run over a slot cache or leaves no memory for a
    prompt.
    """

    def __init__(
        self,
        base: LoadedBase,
        mole: MoleModel,
        bank: AdapterBank,
        settings: Settings,
        clock: Callable[[], float] = time.monotonic,
        on_running: Callable[[frozenset[Hashable]], None] = lambda tags: None,
        quiet: Quiet | None = None,
    ) -> None:
        self.base = base
        self.bank = bank
        uses_graphs = settings.cuda_graphs == "on"
        self.runner = Runner(base, mole, bank, self._tick, uses_graphs)
        token_bytes = self.runner.backend.bytes_per_token
        self.plan = memory_plan(base, settings, token_bytes, self.runner.prefill_tokens)
        bank.limit_bytes(self.plan.max_bank_bytes, self.plan.max_packs_bytes)
        self.limit_tokens = min(base.context_tokens, self.plan.max_batch_tokens)
        self.progress_at = clock()
        self.idle = True
        self.num_prompts = self.num_generated_tokens = self.num_steps = 0
        self._admission = Admission(bank, on_progress=self._tick)
        self._slots = Slots(settings.batch_size, self.plan.max_batch_tokens)
        self._num_threads = settings.torch_threads
        self._clock = clock
        self._scheduler = Scheduler(
            settings.batch_size,
            self.plan.max_batch_tokens,
            settings.bank_size,
            settings.batch_interval_seconds,
            refill_share=REFILL_SHARE.get(base.device.type, 0.0),
        )
        self._wake = threading.Condition()  # guards _scheduler and _ended
        self._ended = ""  # why nothing is answered any more
        self._thread: threading.Thread | None = None
        # Below: touched by the thread that steps only.
        self._watchers = Watchers(on_running, quiet or threading.Lock())
        self._retries = Retries()
        self._running: list[Sequence] = []  # taken from the line and not yet answered
        self._isolated = False  # those that run are a part of a broken batch

    def submit(self, request: GenerationRequest) -> GenerationFuture:
        """Queues a prompt; tokenised here, in the caller's thread. Never raises for the prompt:
        its future fails."""
        future = GenerationFuture()
        try:
            sequence = self._sequence(request, future)
        except RamoleError as e:
            future.set_exception(e)
            return future
        if request.cascades and request.rule is not None:  # the second says it to the type checker
            return Cascade(sequence, self._queue, request.rule).start()
        self._queue([sequence])
        return future

    def read_router(self, version: str) -> None:
        """Reads a router in the caller's thread, so that a source that keeps what it read last
        spares the engine's own thread the wait for the store. Raises UnavailableError; what else
        goes wrong, the prompts that need the router are told."""
        if self.bank.router_source is None:
            return
        try:
            self.bank.router_source.load_router(version)
        except UnavailableError:
            raise
        except Exception as e:
            log.info("router %s cannot be read ahead: %r", version, e)

    def start(self) -> None:
        """Starts the thread that owns the model."""
        assert self._thread is None, "an engine starts once"
        self.progress_at = self._clock()  # what came before was no standstill
        self._thread = threading.Thread(target=self._run, name="ramole-engine", daemon=True)
        self._thread.start()

    @property
    def ended(self) -> str:
        """Why nothing is answered any more; empty while it is. Any thread may read it."""
        return self._ended

    def stop(self) -> None:
        """Ends the thread after its current step; pending futures fail with UnavailableError."""
        self._refuse("the engine was stopped")
        if self._thread is not None:
            self._thread.join(STOP_SECONDS)
        self._fail_everything(UnavailableError(self._ended))
        self.bank.close()
        self.runner.close()

    def step(self) -> bool:
        """Lets waiting prompts in, then one forward. False when there is nothing to do yet, or
        ever again."""
        if self._ended:
            return False
        self._drop_unwanted()
        chosen = self._chosen()
        self._running += chosen  # at once: whatever goes wrong, they are in a list
        if chosen and chosen[0].request.alone:
            self._end_loads(chosen)
        self._watchers.show(self._running)
        if chosen:
            self._guarded(lambda: self._enter(chosen))
        if self._running:
            self._guarded(self._forward)
        elif not chosen and self._is_due():  # for adapters on their way
            self.bank.wait_for_load(LOAD_TICK_SECONDS)
        self._tick()
        self.idle = not (self._running or self._retries or self._is_due())
        if not (self._running or self._ended):  # whom it ended with stays to be blamed
            self._watchers.show(())
        return not self.idle

    def _queue(self, sequences: Many[Sequence]) -> None:
        """Puts them in line, all or none: once the engine has ended they fail."""
        with self._wake:
            if not self._ended:
                for sequence in sequences:
                    self._scheduler.add(sequence)
                self._wake.notify()
                return
        for sequence in sequences:
            if sequence.future.set_running_or_notify_cancel():
                sequence.future.set_exception(UnavailableError(self._ended))

    def _chosen(self) -> list[Sequence]:
        """Who enters now: those that the scheduler takes out of the line; or, one after the other
        and nobody beside it, a part of a broken batch."""
        if self._running and (self._isolated or self._running[0].request.alone):
            return []  # and nothing is read beside one that is alone
        part = self._retries.next_batch()
        self._isolated = bool(part)
        return part or self._taken()

    def _taken(self) -> list[Sequence]:
        """Out of the line; the adapters of those that stay begin to load."""
        with self._wake:
            window = self._scheduler.window()
        self._admission.look_ahead(window)
        with self._wake:
            return self._scheduler.admit(self._clock(), self._running, self._admission.ready)

    def _end_loads(self, chosen: Many[Sequence]) -> None:
        """What is read beside a prompt that is to be alone would be blamed on it."""
        self._admission.look_ahead(chosen)  # withdraws what has not begun
        while self.bank.is_loading:
            self.bank.wait_for_load(LOAD_TICK_SECONDS)
            self._tick()

    def _enter(self, chosen: Many[Sequence]) -> None:
        """They get their adapters and a slot."""
        newcomers = [s for s in chosen if self._claims(s)]
        for sequence, error in self._admission.admit(newcomers):
            self._fail(sequence, error)
        self._slots.max_tokens = self._scheduler.token_limit
        if self._slots.enter([s for s in newcomers if s in self._running]):
            self.runner.forget()

    def _forward(self) -> None:
        self._deliver(self.runner.step(self._running, self._slots.cache))

    def _is_due(self) -> bool:
        """Somebody in the line may enter as soon as there is room and the adapters are here."""
        with self._wake:
            return self._scheduler.wait_seconds(self._clock()) == 0.0

    def _drop_unwanted(self) -> None:
        """Ends the prompts that nobody waits for any more."""
        for sequence in [s for s in self._running if s.future.unwanted]:
            self._leave(sequence)
            self._fail(sequence, PromptError("cancelled", "it was cancelled while it was decoded"))

    def _claims(self, sequence: Sequence) -> bool:
        """From here on the prompt cannot be cancelled; False when it was."""
        if sequence.started and sequence.future.unwanted:  # while it waited to run again
            self._fail(sequence, PromptError("cancelled", "it was cancelled after it had begun"))
            return False
        if not (sequence.started or sequence.future.set_running_or_notify_cancel()):
            self._running.remove(sequence)
            return False
        sequence.started = True
        sequence.restart()
        return True

    def _deliver(self, tokens: Many[NewToken]) -> None:
        """Gives every prompt its newest token; answers those that ended, which leave at once."""
        self.num_steps += 1
        for new in tokens:
            sequence = new.sequence
            if new.token == NO_TOKEN:
                error = PromptError("not_a_number", "the model's output overflowed")
                self._leave(sequence)
                self._fail(sequence, error)
                continue
            self.num_generated_tokens += 1
            if reason := sequence.append(new.token, new.log_probability, new.weights):
                answer = sequence.generation(reason)
                self._leave(sequence)
                self._forget(sequence)
                sequence.future.set_result(answer)
        if self._isolated and not self._running:
            self._isolated = False

    def _leave(self, sequence: Sequence) -> None:
        """The prompt's slot and adapters are free again."""
        self._slots.leave(sequence)
        self._admission.release(sequence)
        with self._wake:
            has_fitted = self._scheduler.finished()
        if has_fitted:
            self.runner.grow_chunks()

    def _guarded(self, action: Callable[[], None]) -> None:
        """Runs a step; whatever it raises is dealt with and never ends the thread."""
        failure = None
        try:
            action()
        except Exception as e:
            log.warning("a step failed with %d prompts", len(self._running), exc_info=True)
            failure = Failure.of(e)
        # Out here the exception is gone, and with it the frames that hold the batch's tensors.
        if failure is not None:
            self._recover(failure)

    def _recover(self, failure: Failure) -> None:
        """Lets the batch's prompts run again; on a lost device nothing can."""
        if failure.device_lost:
            self._end(f"the device is lost: {failure.message}")
            return
        self._close_batch()
        if failure.out_of_memory:
            self._free_memory(self._running)
        sequences, self._running = self._running, []
        for guilty in self._retries.add(sequences):
            self._fail(guilty, failure.prompt_error(guilty.num_tokens))

    def _free_memory(self, sequences: Many[Sequence]) -> None:
        """The batch is closed, so that its adapters count as unused too."""
        self.bank.free_unused()
        self.runner.halve_chunks()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        with self._wake:
            self._scheduler.ran_out_of_memory(sequences)

    def _close_batch(self) -> None:
        """All slots and adapters are free again; what a broken step left in the cache is gone."""
        self.runner.forget()
        self._slots.release()
        self._admission.release_all()

    def _forget(self, sequence: Sequence) -> None:
        self.num_prompts += not sequence.is_second_pass
        if sequence in self._running:
            self._running.remove(sequence)

    def _fail(self, sequence: Sequence, error: RamoleError) -> None:
        self._forget(sequence)
        if sequence.started or sequence.future.set_running_or_notify_cancel():
            with suppress(InvalidStateError):  # it has its answer: those behind it need theirs
                sequence.future.set_exception(error)

    def _refuse(self, why: str) -> None:
        """Nothing is accepted or stepped any more. The first reason stays."""
        with self._wake:
            self._ended = self._ended or why
            self._wake.notify_all()

    def _end(self, why: str) -> None:
        """What runs and waits fails too: whoever waits for it must not wait for a new process."""
        self._refuse(why)
        log.error("the engine has ended: %s", why)
        self._fail_everything(UnavailableError(why))

    def _fail_everything(self, error: RamoleError) -> None:
        with self._wake:
            waiting = self._scheduler.drain()
        for sequence in [*self._running, *self._retries.drain(), *waiting]:
            self._fail(sequence, error)
        self._close_batch()
        self._watchers.end_quiet()

    def _sequence(self, request: GenerationRequest, future: GenerationFuture) -> Sequence:
        mix = request.mix()
        self.bank.check_admissible([mix.experts[i] for i in mix.active()])
        ids = self.base.prompt_ids(request, self.limit_tokens)
        return Sequence(
            request=request,
            prompt_ids=ids,
            max_new_tokens=min(request.max_new_tokens, self.limit_tokens - len(ids)),
            stop_rule=StopRule(self.base.codec, self.base.eos_ids, request.stop),
            arrived_at=self._clock(),
            mix=mix,
            future=future,
        )

    def _run(self) -> None:
        try:
            # Set in this thread: OpenMP keeps the number per thread.
            torch.set_num_threads(self._num_threads or num_cpus())
            while not self._ended:
                self._turn()
        except BaseException as e:  # a panic in the tokenizer's Rust code is no Exception
            log.exception("the engine's thread ends")
            self._end(f"the engine's thread ended: {type(e).__name__}")

    def _turn(self) -> None:
        try:
            if not self.step():
                self._wait()
        except Exception as e:  # outside of the guarded steps: nobody may wait for ever
            log.exception("the engine's own bookkeeping failed")
            self._survive(Failure.of(e))

    def _survive(self, failure: Failure) -> None:
        if failure.device_lost:
            self._end(f"the device is lost: {failure.message}")
            return
        self._fail_everything(PromptError("engine_error", "the engine failed, see its log"))
        with self._wake:
            self._wake.wait(IDLE_TICK_SECONDS)  # whatever it is, do not spin on it

    def _wait(self) -> None:
        with self._wake:
            seconds = self._scheduler.wait_seconds(self._clock())
            if not self._ended and seconds != 0.0:
                self._wake.wait(min(IDLE_TICK_SECONDS, seconds or IDLE_TICK_SECONDS))

    def _tick(self) -> None:
        """Not while a load hangs: the worker's watchdog ends a process that stands still."""
        if not self._ended and self.bank.loading_seconds() < MAX_LOAD_SECONDS:
            self.progress_at = self._clock()

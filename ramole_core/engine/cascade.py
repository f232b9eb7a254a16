"""Gate `cascade`: a mixture first, and where it is not sure of its answer each expert alone.

First pass: the prompt under gate `mole`, with its confidence. At the rule's threshold or above
that is the answer. Below, a second pass: the prompt once more for every expert alone, with the same
seed and decoding, as ordinary sequences that are batched with whatever else waits, at the prompt's
own place in the line; `choose` picks one of the answers. Weights report who made the answer: those
of the mixture, or 1 for the chosen expert and 0 for the others.

Guarantees: the answer depends on the request alone, never on the order in which parts end; the
future always ends, with the engine too; an expert that fails in the second pass leaves the choice
to the others (all of them: to the first pass), unless it failed for a reason of the moment: memory
that ran out and errors of the engine fail the whole, and so does an outage (UnavailableError)
anywhere, to be tried again. The future can be cancelled until it has its answer: what waits leaves
the line, what runs ends before the next step.
"""

import logging
import math
import threading
from collections.abc import Callable
from collections.abc import Sequence as Many
from concurrent.futures import CancelledError
from dataclasses import replace
from typing import Final

from ramole_core.engine.choice import Candidate, CascadeRule, choose
from ramole_core.engine.request import Generation, GenerationFuture
from ramole_core.engine.sequence import Sequence
from ramole_core.errors import PromptError, UnavailableError

OF_THE_MOMENT: Final = ("out_of_memory", "engine_error")  # codes

log = logging.getLogger(__name__)


class Cascade:
    """One prompt. Its callbacks run in the thread that ends a sequence, as a rule the engine's:
    they neither raise nor wait. `queue` puts sequences in line, or fails their futures."""

    def __init__(
        self, first: Sequence, queue: Callable[[Many[Sequence]], None], rule: CascadeRule
    ) -> None:
        self.future = GenerationFuture()
        self._first = first
        self._queue = queue
        self._rule = rule
        self._lock = threading.Lock()  # guards the two below, and is never held while others run
        self._over = False
        self._second: list[Sequence] = []  # one per expert, in the request's order

    def start(self) -> GenerationFuture:
        """Puts the first pass in line; the future of the answer."""
        self.future.add_done_callback(lambda _: self._end())
        self._first.future.add_done_callback(lambda _: self._safely(self._after_first))
        self._queue([self._first])
        return self.future

    def _after_first(self) -> None:
        error = self._first.future.exception()
        if error is not None:
            self._finish(error)
            return
        answer = self._first.future.result()
        assert answer.confidence is not None
        if answer.confidence >= self._rule.threshold:
            self._finish(answer)
        else:
            self._begin_second_pass()

    def _begin_second_pass(self) -> None:
        experts = range(len(self._first.request.experts))
        second = [self._first.alone(place) for place in experts]
        with self._lock:
            if self._over:  # cancelled in the meantime
                return
            self._second = second
        for sequence in second:
            sequence.future.add_done_callback(lambda _: self._safely(self._after_candidate))
        self._queue(second)

    def _after_candidate(self) -> None:
        ended = [s.future for s in self._second if s.future.done()]
        errors = [future.exception() for future in ended]
        passing = next(filter(_is_of_the_moment, errors), None)
        if passing is not None:
            self._finish(passing)
        elif len(ended) == len(self._second):
            self._finish(self._chosen())

    def _chosen(self) -> Generation:
        """Every candidate has ended, none for a reason of the moment."""
        mixture = self._first.future.result()
        futures = [s.future for s in self._second]
        alone = {i: f.result() for i, f in enumerate(futures) if f.exception() is None}
        if len(alone) < len(futures):
            log.warning("%d of %d experts failed alone", len(futures) - len(alone), len(futures))
        prior, experts = self._first.mix.log_prior(), self._first.request.experts
        places = list(alone)
        candidates = [_candidate(a, prior[i], experts[i].similarity) for i, a in alone.items()]
        if self._rule.mixture_votes:
            candidates.append(_candidate(mixture, 0.0, None))
        answer = mixture
        if candidates and (best := choose(candidates, self._rule)) < len(places):
            weights = tuple(float(place == places[best]) for place in range(len(futures)))
            answer = replace(alone[places[best]], weights=weights)
        num_tokens = sum(a.completion_tokens for a in (mixture, *alone.values()))
        extra = num_tokens - answer.completion_tokens
        return replace(answer, extra_passes=len(alone), extra_tokens=extra)

    def _finish(self, outcome: Generation | BaseException) -> None:
        """The first outcome counts."""
        if not self._closes() or not self.future.set_running_or_notify_cancel():
            return
        if isinstance(outcome, Generation):
            self.future.set_result(outcome)
        else:
            self.future.set_exception(outcome)

    def _end(self) -> None:
        """The future has its answer or was cancelled: nothing more is waited for."""
        if self._closes():
            self.future.set_running_or_notify_cancel()  # tells `concurrent.futures.wait`
        for sequence in (self._first, *self._second):
            sequence.future.end()

    def _closes(self) -> bool:
        """True for the one call that ends the cascade."""
        with self._lock:
            is_first, self._over = not self._over, True
        return is_first

    def _safely(self, react: Callable[[], None]) -> None:
        """Whatever a callback raises ends the prompt, so that nobody waits for ever."""
        try:
            react()
        except CancelledError:  # a part was, and so was the whole
            return
        except Exception as e:
            log.exception("a cascade failed")
            message = f"the cascade failed: {type(e).__name__}: {e}"
            self._finish(PromptError("engine_error", message[:300]))


def _is_of_the_moment(error: BaseException | None) -> bool:
    """True for an error that says nothing of the expert."""
    if isinstance(error, PromptError):
        return error.code in OF_THE_MOMENT
    return isinstance(error, UnavailableError)


def _candidate(answer: Generation, log_prior: float, similarity: float | None) -> Candidate:
    assert answer.confidence is not None
    known = -math.inf if similarity is None else similarity
    return Candidate(answer.text, answer.confidence, log_prior, known)

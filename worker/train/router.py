"""`ramole train router`: from a file of examples to a stored router version, in use if better.

Nothing is written before the training is over.
"""

import dataclasses
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from ramole_core.engine.failures import Failure
from ramole_core.errors import InvalidInputError
from ramole_core.jobs import utc_now
from ramole_core.mole.router_examples import Example, training_adapters
from ramole_core.mole.router_setup import RouterRecipe
from ramole_core.mole.router_training import Step, TrainedRouter, estimate, train_router
from ramole_core.training import TrainReport, TrainRouter
from worker.train.activation import decide
from worker.train.base import Workbench
from worker.train.context import TrainContext
from worker.train.examples import Line, read_lines
from worker.train.progress import Progress
from worker.train.router_version import serving_router, store_router
from worker.train.similarities import encoder_in_use, with_similarities


def run(request: TrainRouter, context: TrainContext) -> TrainReport:
    """Trains as `request` says. Raises InvalidInputError for data or options that do not do,
    NotFoundError, ConfigError, UnavailableError; the store is unchanged then."""
    refs = context.registry.active()
    lines = read_lines(Path(request.data), refs, request.adapters)
    bench = Workbench.open(context)
    examples = [bench.example(line, refs[line.example.adapter]) for line in lines]
    training_adapters(examples)  # enough of them?
    try:
        if request.dry_run:
            return _estimated(request, bench, examples)
        return _trained(request, context, bench, examples, lines)
    except (RuntimeError, MemoryError) as e:
        failure = Failure.of(e)
        if not failure.out_of_memory:
            raise
        raise InvalidInputError(
            f"out of memory ({failure.message}): use a smaller --batch-size, fewer --adapters or "
            "shorter examples"
        ) from e


def _estimated(request: TrainRouter, bench: Workbench, examples: list[Example]) -> TrainReport:
    """What the run would be. The prior is left out: it costs no time."""
    found = estimate(bench.mole, bench.bank, examples, _recipe(request))
    return TrainReport(
        kind="router",
        version=None,
        active=False,
        verdict="a dry run: nothing was stored",
        num_adapters=len(training_adapters(examples)),
        num_examples=len(examples),
        num_parameters=found.num_parameters,
        num_steps=request.steps,
        stopped_by="dry-run",
        held_out_before=None,
        held_out_serving=None,
        held_out_after=None,
        seconds=round(found.seconds, 1),
    )


def _trained(
    request: TrainRouter,
    context: TrainContext,
    bench: Workbench,
    examples: list[Example],
    lines: Sequence[Line],
) -> TrainReport:
    """Trains, stores, decides."""
    began = time.monotonic()
    trained = _train(request, context, bench, examples, [line.example.prompt for line in lines])
    version = store_router(context, trained.weights)
    active, verdict = decide(context, "router", version, trained.better, request.activate)
    card = trained.weights.card
    return TrainReport(
        kind="router",
        version=version,
        active=active,
        verdict=verdict,
        num_adapters=len(card.adapters),
        num_examples=len(examples),
        num_parameters=trained.weights.num_parameters,
        num_steps=trained.held_out[-1][0],
        stopped_by=trained.stopped_by,
        held_out_before=card.held_out_before,
        held_out_serving=trained.serving,
        held_out_after=card.held_out_after,
        seconds=round(time.monotonic() - began, 1),
    )


def _train(
    request: TrainRouter,
    context: TrainContext,
    bench: Workbench,
    examples: list[Example],
    prompts: Sequence[str],
) -> TrainedRouter:
    serving = serving_router(context) if request.activate == "if-better" else None
    recipe, adapters = _recipe(request), training_adapters(examples)
    if request.prior:
        encoder = encoder_in_use(context)
        examples = with_similarities(context, encoder, examples, prompts, adapters)
        recipe = dataclasses.replace(recipe, encoder=encoder.version, tau=encoder.tau)
    context.progress.say(f"training: {len(examples)} examples of {len(adapters)} adapters")
    with context.progress.running():
        return train_router(
            bench.mole,
            bench.bank,
            examples,
            recipe,
            base=context.base.fingerprint,
            created_at=utc_now().isoformat(timespec="seconds"),
            serving=serving,
            report=partial(_show, context.progress),
        )


def _recipe(request: TrainRouter) -> RouterRecipe:
    return RouterRecipe(
        rank=request.rank,
        steps=request.steps,
        batch_size=request.batch_size,
        learning_rate=request.learning_rate,
        dropout=request.dropout,
        candidates=request.candidates,
        seed=request.seed,
    )


def _show(progress: Progress, step: Step) -> None:
    progress.step(step.number, step.of, f"loss {step.loss:.3f}, held-out loss {step.held_out:.3f}")

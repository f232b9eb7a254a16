"""From prompts to engine requests: which experts answer each prompt, and how they are mixed."""

import hashlib
from dataclasses import dataclass
from typing import Final

from pydantic import ValidationError

from ramole_core.adapters.registry import Registry
from ramole_core.engine.choice import CascadeRule
from ramole_core.engine.request import Expert, GenerationRequest
from ramole_core.errors import NotFoundError, PromptError
from ramole_core.jobs import Manifest, Priority, PromptOptions, PromptRequest
from ramole_core.mole.gates import TAU
from ramole_core.retrieval.index import Match
from ramole_core.retrieval.retriever import Query, Retriever
from worker.encoders import Encoders

PRIORITY: Final[dict[Priority, int]] = {"low": -1, "normal": 0, "high": 1}  # the engine's


@dataclass(frozen=True)
class Fit:
    """What belongs to an encoder's similarities: see Serving."""

    tau: float = TAU
    rule: CascadeRule | None = None


@dataclass(frozen=True)
class Routed:
    """One prompt with its engine request, or the error that keeps it from having one."""

    prompt: PromptRequest
    request: GenerationRequest | None
    error: PromptError | None = None

    @property
    def no_adapter(self) -> bool:
        """True when no adapter that was retrieved applies; explicit choices have gate `weights`."""
        return (
            self.request is not None and self.request.gate != "weights" and not self.request.experts
        )


def route(
    prompts: list[PromptRequest], manifest: Manifest, encoders: Encoders, registry: Registry
) -> list[Routed]:
    """Retrieves for all prompts at once, with the encoder that the job pins; a prompt that cannot
    be routed carries its error."""
    options = [_options(prompt, manifest) for prompt in prompts]
    queries = {
        i: _query(prompts[i], chosen, manifest)
        for i, chosen in enumerate(options)
        if isinstance(chosen, PromptOptions) and chosen.adapters is None
    }
    answers, fit = _retrieved(encoders, manifest.pins.encoder, list(queries.values()))
    found = dict(zip(queries, answers, strict=True))
    return [
        _routed(prompt, chosen, found.get(i), manifest, registry, fit)
        for i, (prompt, chosen) in enumerate(zip(prompts, options, strict=True))
    ]


def seed_of(job_id: str, index: int) -> int:
    """The seed of a prompt that names none: the same for every run of the job."""
    digest = hashlib.sha256(f"{job_id}:{index}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def _query(prompt: PromptRequest, options: PromptOptions, manifest: Manifest) -> Query:
    return Query(
        text=prompt.query(),
        k=options.k,
        allow=options.allow_adapters,
        exclude=options.exclude_adapters,
        position=manifest.pins.registry,
    )


def _options(prompt: PromptRequest, manifest: Manifest) -> PromptOptions | PromptError:
    """The prompt's options, or why it cannot be asked."""
    if prompt.error is not None:
        return PromptError(prompt.error.code, prompt.error.message)
    try:
        return prompt.options_over(manifest.options)
    except ValidationError as e:
        problem = e.errors()[0]
        return PromptError("damaged", f"option {problem['loc'][0]}: {problem['msg']}")


def _retrieved(
    encoders: Encoders, version: str, queries: list[Query]
) -> tuple[list[list[Match] | PromptError], Fit]:
    """The answers, and what fits the encoder. No query needs no encoder."""
    if not queries:
        return [], Fit()
    try:
        with encoders.get(version) as serving:
            return _search(serving.retriever, queries), Fit(serving.tau, serving.rule)
    except PromptError as e:
        return [e] * len(queries), Fit()


def _search(retriever: Retriever, queries: list[Query]) -> list[list[Match] | PromptError]:
    """All at once; one by one when the encoder fails on some text among them."""
    try:
        return list(retriever.search(queries))
    except PromptError as e:
        if len(queries) == 1:
            return [e]
        return [answer for query in queries for answer in _search(retriever, [query])]


def _routed(
    prompt: PromptRequest,
    options: PromptOptions | PromptError,
    matches: list[Match] | PromptError | None,
    manifest: Manifest,
    registry: Registry,
    fit: Fit,
) -> Routed:
    for problem in (options, matches):
        if isinstance(problem, PromptError):
            return Routed(prompt, None, problem)
    assert isinstance(options, PromptOptions) and not isinstance(matches, PromptError)
    try:
        if matches is None:
            experts, gate = _explicit(options, manifest, registry), "weights"
        else:
            experts, gate = _kept(options, matches), options.gate
        return Routed(prompt, _request(prompt, options, manifest, experts, gate, fit))
    except (PromptError, NotFoundError) as e:
        return Routed(prompt, None, PromptError(e.code, str(e)))


def _request(
    prompt: PromptRequest,
    options: PromptOptions,
    manifest: Manifest,
    experts: tuple[Expert, ...],
    gate: str,
    fit: Fit,
) -> GenerationRequest:
    messages = prompt.messages
    seed = options.seed if options.seed is not None else seed_of(manifest.job_id, prompt.index)
    return GenerationRequest(
        prompt=prompt.prompt,
        messages=None if messages is None else tuple((m.role, m.content) for m in messages),
        experts=experts,
        gate=gate,
        tau=fit.tau,
        rule=fit.rule,
        router=manifest.pins.router,
        max_new_tokens=options.max_new_tokens,
        temperature=options.temperature,
        top_p=options.top_p,
        seed=seed,
        stop=options.stop,
        on_too_long=options.on_too_long,
        priority=PRIORITY[manifest.options.priority],
    )


def _explicit(options: PromptOptions, manifest: Manifest, registry: Registry) -> tuple[Expert, ...]:
    chosen = options.adapters or ()
    refs = [registry.resolve(c.name, c.version, manifest.pins.registry) for c in chosen]
    return tuple(Expert(ref, weight=c.weight) for ref, c in zip(refs, chosen, strict=True))


def _kept(options: PromptOptions, matches: list[Match]) -> tuple[Expert, ...]:
    floor = options.min_similarity
    kept = [m for m in matches if floor is None or m.similarity >= floor]
    if not kept and options.on_no_adapter == "fail":
        best = f"; the best has {matches[0].similarity:.3f}" if matches else ""
        raise PromptError(
            "no_adapter",
            f"no adapter reaches min_similarity {floor}{best}"
            if matches
            else "no adapter may answer this prompt",
        )
    return tuple(Expert(m.ref, similarity=m.similarity) for m in kept)

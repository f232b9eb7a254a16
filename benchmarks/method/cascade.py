"""Gate `cascade` computed from answers that are known already, by the product's own rule.

The engine's gate decodes up to 1 + k answers a prompt; most of them stand in the table. What is
computed here equals what the engine answers: `__main__` asks the engine for the default gate's row
and stops when one answer differs.
"""

from collections.abc import Sequence
from dataclasses import replace

from benchmarks.method.answers import Answers, single
from ramole_core.engine.choice import Candidate, choose
from ramole_core.engine.request import Generation, GenerationRequest


def cascade_answers(answers: Answers, requests: Sequence[GenerationRequest]) -> list[Generation]:
    """The answers to `requests` (gate `cascade` with its rule, or one expert alone) in order."""
    first = answers.ask([_first_pass(request) for request in requests])
    low = [
        place
        for place, (request, answer) in enumerate(zip(requests, first, strict=True))
        if request.rule is not None and (answer.confidence or 0.0) < request.rule.threshold
    ]
    answers.ask([q for place in low for q in _alone(requests[place])])  # all in large batches
    found = list(first)
    for place in low:
        alone = answers.ask(_alone(requests[place]))
        found[place] = _chosen(requests[place], first[place], alone)
    return found


def _chosen(request: GenerationRequest, mixture: Generation, alone: list[Generation]) -> Generation:
    rule = request.rule
    assert rule is not None
    prior = request.mix().log_prior()
    candidates = [
        Candidate(a.text, a.confidence or 0.0, p, e.similarity or 0.0)
        for a, p, e in zip(alone, prior, request.experts, strict=True)
    ]
    if rule.mixture_votes:
        candidates.append(Candidate(mixture.text, mixture.confidence or 0.0, 0.0, -float("inf")))
    answer = mixture
    if (best := choose(candidates, rule)) < len(alone):
        weights = tuple(float(place == best) for place in range(len(alone)))
        answer = replace(alone[best], weights=weights)
    num_tokens = sum(a.completion_tokens for a in (mixture, *alone))
    extra = num_tokens - answer.completion_tokens
    return replace(answer, extra_passes=len(alone), extra_tokens=extra)


def _first_pass(request: GenerationRequest) -> GenerationRequest:
    return replace(request, gate="mole", rule=None) if request.cascades else request


def _alone(request: GenerationRequest) -> list[GenerationRequest]:
    assert request.prompt is not None
    return [single(request.prompt, expert.ref) for expert in request.experts]

"""Whether what was trained is put in use, and the sentence that says so."""

from ramole_core.activations import Kind
from ramole_core.training import Activate
from worker.train.context import TrainContext


def decide(
    context: TrainContext, kind: Kind, version: str, better: bool, when: Activate
) -> tuple[bool, str]:
    """(the stored `version` is in use now, why). `better`: than what is in use, on data that was
    held out."""
    active = context.activations.active()
    before = active.router if kind == "router" else active.encoder
    if before == version:
        return True, f"the same {kind} is in use already"
    if when == "always" or (when == "if-better" and better):
        context.activations.use(kind, version)
        return True, f"in use from the next job on; `ramole {kind}s rollback` goes back"
    why = "stored, not in use"
    if when == "if-better":
        why = f"not better than {before or f'no {kind}'}, so stored but not in use"
    return False, f"{why}; `ramole {kind}s use {version}` puts it in use"

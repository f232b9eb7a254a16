"""The names of all objects in the store, in one place. DESIGN of the layout: docs/formats.md.

Everything here is a pure function from ids to keys; nothing touches a store.
"""

from typing import Final

from ramole_core.adapters.ref import AdapterRef

BASE: Final = "base.json"
ACTIVATIONS: Final = "activations/"
ENCODERS: Final = "encoders/"
ROUTERS: Final = "routers/"
LIVE_JOBS: Final = "live/"
CANCELLING_JOBS: Final = "cancelling/"
JOBS: Final = "jobs/"
STAGING: Final = "staging/"
REGISTRY_LOG: Final = "registry/log/"
REQUESTS: Final = "requests/"
REPLIES: Final = "replies/"
PROBES: Final = "probes/"


def job(job_id: str) -> str:
    """Folder of everything of one job but its markers."""
    return f"{JOBS}{job_id}/"


def manifest(job_id: str) -> str:
    """Options, pins, counts. Written last at submission: no manifest, no job."""
    return f"jobs/{job_id}/manifest.json"


def input_prefix(job_id: str, submission: str) -> str:
    """Folder of the shards of one submission; two submissions of one id never mix."""
    return f"jobs/{job_id}/input/{submission}/"


def input_shard(job_id: str, submission: str, shard: str) -> str:
    """The prompts of one shard, JSON lines of PromptRequest."""
    return f"{input_prefix(job_id, submission)}{shard}.jsonl"


def outputs(job_id: str) -> str:
    """Folder of the finished shards."""
    return f"jobs/{job_id}/output/"


def output_shard(job_id: str, shard: str) -> str:
    """The results of one shard, JSON lines of PromptResult. Created once."""
    return f"{outputs(job_id)}{shard}.jsonl"


def attempts(job_id: str) -> str:
    """Folder of the attempts of all shards of a job."""
    return f"jobs/{job_id}/attempts/"


def attempt(job_id: str, shard: str, number: int) -> str:
    """One object per begun attempt, so that their bound survives an empty Redis."""
    return f"{attempts(job_id)}{shard}/{number}.json"


def deaths(job_id: str) -> str:
    """Folder of the deaths of worker processes that are charged to prompts of a job."""
    return f"jobs/{job_id}/deaths/"


def death(job_id: str, index: int, name: str) -> str:
    """One death charged to one prompt; `name` is alone-WORKER or beside-WORKER."""
    return f"{deaths(job_id)}{index}/{name}.json"


def finished(job_id: str) -> str:
    """Final counts, created once by the worker that finds all outputs there."""
    return f"jobs/{job_id}/finished.json"


def cancelled(job_id: str) -> str:
    """Created once by the producer that cancels."""
    return f"jobs/{job_id}/cancelled.json"


def cancelling(job_id: str) -> str:
    """Empty marker of a cancellation that no worker has seen yet."""
    return f"{CANCELLING_JOBS}{job_id}"


def live(job_id: str) -> str:
    """Empty marker beside every job that has not ended, so that workers find it by listing."""
    return f"{LIVE_JOBS}{job_id}"


def reply(request_id: str) -> str:
    """A worker's answer to an upload or a request."""
    return f"{REPLIES}{request_id}.json"


def request(request_id: str) -> str:
    """What a producer asks of a worker (a search), JSON."""
    return f"{REQUESTS}{request_id}.json"


def staging(upload_id: str) -> str:
    """Folder of an upload that no worker has accepted yet."""
    return f"{STAGING}{upload_id}/"


def adapter(ref: AdapterRef) -> str:
    """Folder of one immutable adapter version."""
    return f"adapters/{ref.name}/{ref.version}/"


def tombstone(ref: AdapterRef) -> str:
    """Marks a removed version; its files stay readable for the jobs that pin it."""
    return f"{adapter(ref)}tombstone.json"


def registry_entry(number: int) -> str:
    """Entry `number` (from 1) of the append-only order of accepted and removed versions."""
    return f"{REGISTRY_LOG}{number:08d}.json"


def activation(number: int) -> str:
    """Entry `number` (from 1) of the append-only log of the encoder and router in use."""
    return f"{ACTIVATIONS}{number:08d}.json"


def encoder(version: str) -> str:
    """Folder of a trained encoder version: the model's files, then encoder.json, and vectors."""
    return f"{ENCODERS}{version}/"


def encoder_card(version: str) -> str:
    """What the encoder was trained on. Written last: no card, no version."""
    return f"{encoder(version)}encoder.json"


def encoder_files(version: str) -> str:
    """Folder of the model in sentence-transformers' format."""
    return f"{encoder(version)}model/"


def vector(encoder: str, ref: AdapterRef) -> str:
    """The adapter's vector under one encoder version, a .npy file of (D,) float32."""
    return f"{ENCODERS}{encoder}/vectors/{ref}.npy"


def router(version: str) -> str:
    """Folder of a router version: router.json and router.safetensors."""
    return f"{ROUTERS}{version}/"

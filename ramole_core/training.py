"""What a training run is asked for and what it answers: one JSON each way between the command
`ramole train` and `python -m worker.train`. Needs no torch.
"""

from typing import Literal

from pydantic import ConfigDict, Field

from ramole_core.jobs import Name, Wire

Activate = Literal["if-better", "always", "never"]


class TrainRetriever(Wire):
    """`ramole train retriever`: the encoder learns from the registered adapters' samples."""

    kind: Literal["retriever"] = "retriever"
    fraction: float = Field(default=1.0, gt=0.0, le=1.0)  # of the adapters, drawn by `seed`
    seed: int = Field(default=0, ge=0, lt=1 << 31)
    data: str | None = None  # JSONL of AdapterSamples, in place of the registered samples
    exclude: tuple[Name, ...] = Field(default=(), strict=False)  # adapters left out
    steps: int | None = Field(default=None, ge=0)  # null: the recipe's; 0: post-processing alone
    neighbours: int = Field(default=8, ge=0, le=1000)  # adapters tried on another's samples
    activate: Activate = "if-better"
    dry_run: bool = False


class TrainRouter(Wire):
    """`ramole train router`: {A_r, B_r} learn from prompts with targets (RAMoLE eq. 13)."""

    kind: Literal["router"] = "router"
    adapters: tuple[Name, ...] = Field(default=(), strict=False)  # empty: those `data` names
    data: str  # JSONL of RouterExample
    seed: int = Field(default=0, ge=0, lt=1 << 31)
    rank: int = Field(default=8, ge=1, le=256)
    prior: bool = True  # train with the retrieval prior in the scores
    candidates: int | None = Field(default=None, ge=2)  # adapters of an example; null: all
    dropout: float = Field(default=0.5, ge=0.0, lt=1.0)
    steps: int = Field(default=150, ge=1, le=1_000_000)
    batch_size: int = Field(default=16, ge=1, le=1024)
    learning_rate: float = Field(default=3e-3, gt=0.0, le=1.0)
    activate: Activate = "if-better"
    dry_run: bool = False


class RouterExample(Wire):
    """One line of the data that a router learns from. Other keys are not looked at."""

    model_config = ConfigDict(extra="ignore")

    prompt: str = Field(min_length=1)
    target: str = Field(min_length=1)
    adapter: Name


class AdapterSamples(Wire):
    """One line of the data that a retriever learns from. Other keys are not looked at."""

    model_config = ConfigDict(extra="ignore")

    adapter: Name
    samples: tuple[str, ...] = Field(strict=False, min_length=1)


class TrainReport(Wire):
    """What came of a training run.

    `held_out_*` are measured on what was kept from the training: a router's loss per target token
    (lower is better), a retriever's mean of top-1, 3, 5 and 8 accuracy in per cent (higher is
    better).
    """

    kind: Literal["retriever", "router"]
    version: Name | None  # null: a dry run, nothing was stored
    active: bool  # it is in use now
    verdict: str  # one sentence for people: what was decided, and what to do about it
    num_adapters: int
    num_examples: int
    num_parameters: int  # that learn
    num_steps: int  # done; of a dry run: asked for
    stopped_by: Literal["steps", "patience", "dry-run"]
    held_out_before: float | None  # without a router; with the encoder that the training began from
    held_out_serving: float | None  # with what was in use; null: nothing, or it is `before`
    held_out_after: float | None
    seconds: float  # of a dry run: estimated, at most

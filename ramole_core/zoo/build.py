"""Building the zoo's data folder from a seed.

Guarantees: the folder appears whole or not at all (made beside the target, then renamed); the same
seed, versions and thread count give the same weights; no file holds a path of this machine.
"""

import json
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from transformers import LlamaForCausalLM

from ramole_core.zoo.adapters import save_adapter, train_adapter
from ramole_core.zoo.curriculum import mixed_example, short_example
from ramole_core.zoo.evaluate import mean, measure
from ramole_core.zoo.model import build_model, build_tokenizer
from ramole_core.zoo.tasks import TASKS, Task, records, sample_prompts
from ramole_core.zoo.training import Recipe, Report, train

Say = Callable[[str], None]

_REPORT_EVERY = 100


@dataclass(frozen=True)
class Scale:
    """How much is trained: the base's two stages, each adapter, and for which tasks."""

    skills: Recipe = Recipe(steps=900, batch_size=128, learning_rate=3e-3)
    prompts: Recipe = Recipe(steps=300, batch_size=128, learning_rate=1.5e-3)
    adapter: Recipe = Recipe(steps=50, batch_size=16, learning_rate=3e-3)
    tasks: tuple[Task, ...] = TASKS


def build(out: Path, seed: int, say: Say, scale: Scale | None = None) -> None:
    """Make the zoo in the folder `out`, replacing it at the very end; `say` gets the progress."""
    scale = scale or Scale()
    out.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=".zoo-", dir=out.parent))
    try:
        base = train_base(seed, scale, say)
        save_base(base, work / "base")
        make_adapters(base, work, seed, scale, say)
        write_jsonl(work / "test.jsonl", records("test", scale.tasks))
        write_jsonl(work / "dev.jsonl", records("dev", scale.tasks))
        write_summary(work, seed, scale)
        replace_folder(work, out)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def train_base(seed: int, scale: Scale, say: Say) -> LlamaForCausalLM:
    """Return the base: it learns the functions on short prompts, then to read long ones."""
    model = build_model(seed)
    report = _reporter("base, skills", scale.skills, say)
    train(model, short_example, scale.skills, seed, report)
    report = _reporter("base, prompts", scale.prompts, say)
    train(model, mixed_example, scale.prompts, seed + 1, report)
    return model


def save_base(model: LlamaForCausalLM, folder: Path) -> None:
    """Save model and tokenizer the way Hugging Face does, in float32."""
    model.save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)


def make_adapters(base: LlamaForCausalLM, work: Path, seed: int, scale: Scale, say: Say) -> None:
    """Train and save the adapter of every task, with its samples beside it."""
    (work / "samples").mkdir()
    for number, task in enumerate(scale.tasks):
        say(f"adapter {number + 1}/{len(scale.tasks)} {task.name}")
        model = train_adapter(base, task, scale.adapter, seed + 100 + number)
        save_adapter(model, work / "adapters" / task.name)
        write_jsonl(work / "samples" / f"{task.name}.jsonl", sample_prompts(task))


def write_summary(work: Path, seed: int, scale: Scale) -> None:
    """Measure what lies in `work` and write `zoo.json`: seed, versions, recipes and accuracies."""
    accuracy = measure(work)
    summary = {
        "seed": seed,
        "versions": {
            name: version(name) for name in ("torch", "transformers", "peft", "tokenizers")
        },
        "recipes": {
            name: asdict(getattr(scale, name)) for name in ("skills", "prompts", "adapter")
        },
        "exact_match": {
            "base": round(mean(accuracy.base), 4),
            "own_adapter": round(mean(accuracy.own), 4),
            "base_by_adapter": {name: round(value, 4) for name, value in accuracy.base.items()},
            "own_by_adapter": {name: round(value, 4) for name, value in accuracy.own.items()},
        },
    }
    (work / "zoo.json").write_text(json.dumps(summary, indent=2) + "\n")


def write_jsonl(path: Path, values: list[Any]) -> None:
    """Write one JSON value per line."""
    path.write_text("".join(json.dumps(value, ensure_ascii=False) + "\n" for value in values))


def replace_folder(work: Path, out: Path) -> None:
    """Put the finished folder `work` in the place of `out`."""
    make_readable(work)
    old = work.with_name(work.name + ".old")
    if out.exists():
        out.rename(old)
    try:
        work.rename(out)
    except BaseException:
        if old.exists():
            old.rename(out)
        raise
    shutil.rmtree(old, ignore_errors=True)


def make_readable(folder: Path) -> None:
    """Let everyone read `folder`: mkdtemp and safetensors make their files private."""
    folder.chmod(0o755)
    for path in folder.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)


def _reporter(name: str, recipe: Recipe, say: Say) -> Report:
    def report(step: int, loss: float) -> None:
        if (step + 1) % _REPORT_EVERY == 0 or step + 1 == recipe.steps:
            say(f"{name}: step {step + 1}/{recipe.steps}, loss {loss:.3f}")

    return report

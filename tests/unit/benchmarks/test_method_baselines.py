"""The baselines that only the method benchmark has: Arrow, the task gate, AdapterSoup's set."""

import torch
from peft import ArrowConfig
from peft.tuners.lora.arrow import ArrowLoraLinearLayer
from torch import nn

from benchmarks.method.answers import Answers, Routers, question, single
from benchmarks.method.arrow import ArrowLinear, Prototypes, prototype
from benchmarks.method.cases import ref_of
from benchmarks.method.task_gate import TaskGate, hidden_means
from ramole_core.adapters.weights import LoraPair, LoraWeights
from ramole_core.engine.request import Expert
from ramole_core.mole.bank import AdapterBank
from ramole_core.mole.gates import Mix
from ramole_core.mole.layer import PlanHolder
from ramole_core.mole.plan import BatchPlan, Segment

from ..engine.tiny import tiny_engine
from ..mole.tiny import DictSource

WIDTH, RANK = 12, 4
REFS = [ref_of(name) for name in ("one", "two", "three")]


def clear_pair(seed: int) -> LoraPair:
    """Random, with one singular value far above the others: power iteration finds its vector."""
    generator = torch.Generator().manual_seed(seed)
    a, b = torch.randn(RANK, WIDTH, generator=generator), torch.randn(6, RANK, generator=generator)
    return LoraPair(a * torch.tensor([3.0, 1.0, 0.3, 0.1])[:, None], b)


def bank_of(pairs: list[LoraPair]) -> AdapterBank:
    """A bank in which they all are."""
    adapters = dict(zip(REFS, (LoraWeights({"q": pair}) for pair in pairs), strict=False))
    source, device = DictSource(adapters), torch.device("cpu")
    bank = AdapterBank({"q": (6, WIDTH)}, 3, source, device, torch.float32)
    for ref in adapters:
        bank.acquire(ref)
    return bank


def prototypes(bank: AdapterBank) -> Prototypes:
    return {ref: prototype(bank.source.load(ref).pairs["q"]) for ref in REFS if bank.ready(ref)}


def arrow_term(x: torch.Tensor, pairs: list[LoraPair], mixes: list[Mix]) -> torch.Tensor:
    """What ArrowLinear adds to its base linear: one segment for all."""
    bank, holder = bank_of(pairs), PlanHolder()
    base = nn.Linear(WIDTH, 6, bias=False)
    layer = ArrowLinear(base, "q", holder, prototypes(bank))
    packed = bank.pack(REFS[: len(pairs)])
    holder.plan = BatchPlan.of_batch(mixes, x.shape[1], packed, x.device)
    return (layer(x) - base(x)).detach()


def test_arrow_equals_pefts_on_adapters_of_one_shape() -> None:
    pairs, x = [clear_pair(1), clear_pair(2)], torch.randn(2, 5, WIDTH)
    names = ["task_0", "task_1"]
    lora_a, lora_b = (nn.ModuleDict() for _ in range(2))
    for name, pair in zip(names, pairs, strict=True):
        lora_a[name], lora_b[name] = nn.Linear(WIDTH, RANK, False), nn.Linear(RANK, 6, False)
        lora_a[name].weight.data, lora_b[name].weight.data = pair.a, pair.b / 2
    config = ArrowConfig(top_k=2, rng_seed=0)
    config.task_adapter_names, config.gks_adapter_names = names, []
    theirs = ArrowLoraLinearLayer(WIDTH, config)
    theirs.build_prototypes(lora_a, lora_b)
    with torch.no_grad():
        wanted = theirs(x, lora_a, lora_b, nn.Identity(), dict.fromkeys(names, 2.0))
    ours = arrow_term(x, pairs, [Mix("mixture", tuple(REFS[:2]))] * 2)
    assert torch.allclose(ours, wanted, atol=1e-4)


def test_arrow_looks_at_the_prompts_own_experts_only() -> None:
    pairs, x = [clear_pair(seed) for seed in range(3)], torch.randn(2, 5, WIDTH)
    mixes = [Mix("mixture", (REFS[0], REFS[1])), Mix("mixture", (REFS[2],))]
    both = arrow_term(x, pairs, mixes)
    assert torch.allclose(both[0], arrow_term(x[:1], pairs[:2], mixes[:1])[0], atol=1e-5)
    alone = x[1] @ pairs[2].a.T @ pairs[2].b.T
    assert torch.allclose(both[1], alone, atol=1e-4)


def test_arrow_works_on_each_segments_own_rows() -> None:
    pairs, x = [clear_pair(seed) for seed in range(3)], torch.randn(1, 5, WIDTH)
    mixes = [Mix("mixture", (REFS[0], REFS[1])), Mix("mixture", (REFS[2],))]
    holder, bank = PlanHolder(), bank_of(pairs)
    layer = ArrowLinear(nn.Linear(WIDTH, 6, bias=False), "q", holder, prototypes(bank))
    packs = [bank.pack(mix.experts) for mix in mixes]
    segments = [
        Segment.of(begin, [mix], [num], None, packed, x.device)
        for begin, num, mix, packed in zip((0, 2), (2, 2), mixes, packs, strict=True)
    ]
    holder.plan = BatchPlan(5, tuple(segments))
    found = (layer(x) - layer.base(x)).detach()[0]
    assert torch.allclose(found[:2], arrow_term(x[:, :2], pairs, mixes[:1])[0], atol=1e-5)
    assert torch.allclose(found[2:4], arrow_term(x[:, 2:4], pairs, mixes[1:])[0], atol=1e-5)
    assert not found[4].any()


def test_a_prototype_is_the_top_right_singular_vector_of_the_product() -> None:
    pair = clear_pair(5)
    wanted = torch.linalg.svd(pair.b @ pair.a).Vh[0]
    assert torch.allclose(prototype(pair).abs(), wanted.abs(), atol=1e-5)


def test_the_task_gate_learns_tasks_that_lie_apart_and_renormalises_without_the_masked() -> None:
    torch.manual_seed(0)
    centres = torch.randn(3, 8) * 3
    labels = torch.arange(3).repeat_interleave(20)
    gate = TaskGate.train(REFS, centres[labels] + torch.randn(60, 8) * 0.3, labels)
    scores = gate.log_probabilities(centres + 0.1)
    assert scores.argmax(-1).tolist() == [0, 1, 2]
    assert torch.allclose(scores.exp().sum(-1), torch.ones(3))
    everyone = gate.experts(scores[0], frozenset(REFS), 3)
    assert everyone[0].ref == REFS[0] and everyone[0].weight and everyone[0].weight > 0.9
    masked = gate.experts(scores[0], frozenset(REFS[1:]), 3)
    assert {e.ref for e in masked} == {*REFS[1:]}
    assert abs(sum(e.weight or 0.0 for e in masked) - 1.0) < 1e-6


def test_between_questions_the_model_can_be_read_with_its_own_attention() -> None:
    asked = [question(p, (Expert(ref_of("a1"), 0.5),)) for p in ("one", "two")]
    wanted = Answers(tiny_engine(), Routers()).ask(asked)
    answers = Answers(tiny_engine(), Routers())
    base, first = answers.engine.base, answers.ask(asked[:1])
    with answers.own_attention():
        together = hidden_means(base, ["a prompt", "and a longer prompt"])
        alone = hidden_means(base, ["a prompt"])
    assert torch.allclose(together[:1], alone, atol=1e-4)
    found = first + answers.ask(asked[1:])
    assert [answer.text for answer in found] == [answer.text for answer in wanted]


def test_questions_that_must_have_one_answer_are_one_question() -> None:
    experts = (Expert(REFS[0], 0.9), Expert(REFS[1], 0.4))
    alone = single("p", REFS[0])
    assert question("p", experts[:1], "mole", tau=0.02) == alone
    assert question("p", experts[:1], "fusion") == question("p", experts, "selection") == alone
    assert question("p", experts, "mole") != question("p", experts, "mixture")

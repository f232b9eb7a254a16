"""Which prompts share a segment: everybody once, nobody under two routers, and never dear."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ramole_core.adapters.ref import AdapterRef
from ramole_core.mole.partition import CALLS, COPY, Item, Partition

REFS = [AdapterRef(f"a{i}", 1) for i in range(8)]
SMALL, LARGE = 10_000, 10_000_000  # numbers of an adapter; 4 M for each group of a segment
EXPERTS = st.frozensets(st.sampled_from(REFS), max_size=4)
SIZES = st.lists(
    st.sampled_from([SMALL, 1_000_000, LARGE]) | st.integers(1, LARGE),
    min_size=len(REFS),
    max_size=len(REFS),
).map(lambda sizes: dict(zip(REFS, sizes, strict=True)))
PACKED = st.lists(st.frozensets(st.sampled_from(REFS), min_size=1), max_size=4)


def items(routers):
    return st.lists(
        st.builds(Item, st.integers(1, 300), EXPERTS, st.sampled_from(routers)), max_size=12
    )


def cost(rows, experts, sizes, groups):
    """The formula of the module."""
    return CALLS * groups + (rows + COPY) * sum(sizes[ref] for ref in experts)


def places(parts):
    return sorted(sorted(part.items) for part in parts)


@given(items([None, "r1", "r2"]), SIZES, PACKED, st.integers(1, 200))
def test_every_item_with_experts_is_in_one_part_that_has_what_it_needs(
    given_items, sizes, packed, groups
):
    asked = []
    parts = Partition(groups, sizes.__getitem__, lambda r: asked.append(r) or packed).of(
        given_items
    )
    placed = [place for part in parts for place in part.items]
    assert sorted(placed) == [i for i, item in enumerate(given_items) if item.experts]
    for part in parts:
        members = [given_items[i] for i in part.items]
        needed = frozenset().union(*(item.experts for item in members))
        assert part.experts == needed or (needed < part.experts and part.experts in packed)
        assert part.num_rows == sum(item.num_rows for item in members)
        assert part.router in asked
    routers = {item.router for item in given_items if item.experts and item.router}
    assert {part.router for part in parts} == (routers or {None} if placed else set())
    for part in parts:
        assert {given_items[i].router for i in part.items} <= {None, part.router}


@given(items([None, "r1"]), SIZES, st.integers(1, 200))
def test_the_choice_is_never_dearer_than_one_part_or_one_part_for_each_set(
    given_items, sizes, groups
):
    parts = Partition(groups, sizes.__getitem__).of(given_items)
    chosen = sum(cost(part.num_rows, part.experts, sizes, groups) for part in parts)
    rows = {}
    for item in given_items:
        if item.experts:
            rows[item.experts] = rows.get(item.experts, 0) + item.num_rows
    if rows:
        together = cost(sum(rows.values()), frozenset().union(*rows), sizes, groups)
        apart = sum(cost(num, experts, sizes, groups) for experts, num in rows.items())
        assert chosen <= min(together, apart)


@given(items([None]), SIZES, PACKED, st.integers(1, 200))
def test_the_cheapest_of_a_new_copy_and_the_packed_supersets_is_taken(
    given_items, sizes, packed, groups
):
    plain = Partition(groups, sizes.__getitem__).of(given_items)
    found = Partition(groups, sizes.__getitem__, lambda _: packed).of(given_items)
    assert places(found) == places(plain), "what lies packed changes the experts only"
    for part, with_packs in zip(plain, found, strict=True):
        work = {experts: sum(sizes[ref] for ref in experts) for experts in packed}
        choices = {e: part.num_rows * w for e, w in work.items() if part.experts <= e}
        copied = (part.num_rows + COPY) * sum(sizes[ref] for ref in part.experts)
        least = min(copied, *choices.values()) if choices else copied
        taken = with_packs.experts
        assert choices.get(taken, copied if taken == part.experts else None) == least


def partition(size=LARGE, groups=100, packed=()):
    return Partition(groups, lambda _: size, lambda _: packed)


def test_prompts_with_the_same_experts_are_together_whatever_else_there_is():
    one, other = frozenset(REFS[:3]), frozenset(REFS[3:6])
    parts = partition().of([Item(n, e) for n in (200, 100) for e in (one, other)])
    assert places(parts) == [[0, 2], [1, 3]]


@pytest.mark.parametrize(
    ("num_rows", "size", "num_parts"),
    [
        (1, 1_000_000, 1),  # one token of each: 8 prompts, 24 experts in one pair of products
        (300, LARGE, 8),  # whole prompts: foreign columns would be most of the work
        (300, SMALL, 1),  # adapters so small that calls are most of the work
    ],
)
def test_calls_and_foreign_columns_are_weighed(num_rows, size, num_parts):
    refs = [AdapterRef(f"b{i}", 1) for i in range(24)]
    given_items = [Item(num_rows, frozenset(refs[i : i + 3])) for i in range(0, 24, 3)]
    assert len(partition(size).of(given_items)) == num_parts


def test_some_may_be_together_and_others_apart():
    """Two long prompts of different experts, and for each a token that needs one of its experts."""
    first, second = frozenset(REFS[:2]), frozenset(REFS[2:4])
    parts = partition(groups=1).of(
        [Item(1, frozenset(REFS[1:2])), Item(300, first), Item(1, frozenset(REFS[3:4]))]
        + [Item(300, second)]
    )
    assert places(parts) == [[0, 1], [2, 3]]


def test_what_no_single_step_would_join_is_joined_where_the_whole_is_cheaper():
    """Three pairs out of three experts: two pairs together are dearer than apart, all three not."""
    pairs = [frozenset(REFS[i] for i in range(3) if i != left) for left in range(3)]
    size, rows = CALLS // 40, 26
    sizes = dict.fromkeys(REFS, size)
    two = cost(2 * rows, REFS[:3], sizes, 1)
    assert two > 2 * cost(rows, pairs[0], sizes, 1), "the test must be such a case"
    assert len(partition(size, groups=1).of([Item(rows, pair) for pair in pairs[:2]])) == 2
    assert len(partition(size, groups=1).of([Item(rows, pair) for pair in pairs])) == 1


def test_a_packed_superset_saves_the_copy_where_the_rows_are_few():
    everyone, pair = frozenset(REFS), frozenset(REFS[:2])
    three = frozenset(REFS[:3])
    [part] = partition(packed=[everyone]).of([Item(1, pair)])
    assert part.experts == everyone, "8 experts once are less than 2 packed and once"
    for packed in ([everyone, three], [three, everyone]):
        [part] = partition(packed=packed).of([Item(1, pair)])
        assert part.experts == three, "the smallest"
    [part] = partition(packed=[everyone]).of([Item(100, pair)])
    assert part.experts == pair, "foreign columns of 100 rows are more than a copy"


def test_what_lies_packed_under_another_router_is_not_used():
    packs = {"r1": [frozenset(REFS[:4])], None: [frozenset(REFS[:3])]}
    found = Partition(1, lambda _: SMALL, lambda router: packs.get(router, [])).of(
        [Item(1, frozenset(REFS[:2]), "r1"), Item(1, frozenset(REFS[:2]), "r2")]
    )
    assert {part.router: len(part.experts) for part in found} == {"r1": 4, "r2": 2}


def test_nothing_to_place_is_no_part():
    assert partition().of([]) == []
    assert partition().of([Item(3, frozenset()), Item(3, frozenset(), "r1")]) == []

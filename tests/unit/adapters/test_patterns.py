"""Patterns match as `re` matches, and no pattern takes long."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ramole_core.adapters.patterns import Budget, SafePattern
from ramole_core.errors import AdapterRefusedError

REGEX = st.recursive(
    st.sampled_from(
        ["a", "b", ".", r"\.", r"\d", r"\w", "[ab]", "[^a]", "[a-c.]", "^", "$", r"\b", r"\B"]
    ),
    lambda inner: st.one_of(
        st.tuples(inner, inner).map("".join),
        st.tuples(inner, inner).map(lambda p: f"({p[0]}|{p[1]})"),
        st.tuples(
            inner, st.sampled_from(["*", "+", "?", "{2}", "{1,3}", "*?", "{2,}", "{0,1}"])
        ).map(lambda p: f"(?:{p[0]}){p[1]}"),
    ),
    max_leaves=6,
)


@settings(max_examples=400, deadline=None)
@given(REGEX, st.text(alphabet="ab.1", min_size=1, max_size=8))
def test_a_pattern_matches_what_re_matches(pattern, name):
    safe = SafePattern(pattern, Budget())
    assert safe.matches(name) == bool(re.fullmatch(pattern, name))
    assert safe.matches_suffix(name) == bool(re.match(rf"(.*\.)?({pattern})$", name))


@pytest.mark.parametrize(
    "pattern", ["(a+)+b", "(a|a)*b", "(" * 90 + "a" + ")*" * 90, "(a?){900}" * 40, "(.*)*" * 60]
)
def test_a_hostile_pattern_ends_within_the_budget(pattern):
    try:
        assert not SafePattern(pattern + "!", Budget(50_000)).matches("a" * 60)
    except AdapterRefusedError as e:
        assert e.reason == "unsafe_pattern"


CLASS = "".join(map(chr, range(0x4E00, 0x4E00 + 950)))


@pytest.mark.parametrize("pattern", ["|" * 950 + "!", f"[^{CLASS}]*!"])
def test_long_branches_and_classes_count_by_their_length(pattern):
    with pytest.raises(AdapterRefusedError, match="too long to match"):
        SafePattern(pattern, Budget(500)).matches("a" * 60)


@pytest.mark.parametrize(
    "pattern",
    [
        "(?i)a",
        "(?i:a)",
        r"(a)\1",
        "(?<=a)b",
        "(?!a)b",
        "a++",
        "(?>a)",
        "(",
        "[",
        "a" * 1001,
        "(" * 400 + ")" * 400,
        "(?P<n>a)(?P=n)",
        "a{99999999999}",
        "\\",
    ],
)
def test_what_the_matcher_does_not_know_is_refused(pattern):
    with pytest.raises(AdapterRefusedError) as refusal:
        SafePattern(pattern, Budget()).matches("q_proj")
    assert refusal.value.reason == "unsafe_pattern"

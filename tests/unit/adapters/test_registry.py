"""The registry's log: order, removal, snapshots, races, owners."""

import threading

import pytest

from ramole_core import keys
from ramole_core.adapters.log import LogEntry
from ramole_core.adapters.ref import AdapterRef
from ramole_core.adapters.registry import Registry
from ramole_core.errors import AdapterRefusedError, InvalidInputError, NotFoundError
from ramole_core.store.directory import DirectoryStore
from tests.unit.adapters.stores import Counting


@pytest.fixture
def store(tmp_path):
    return Counting(DirectoryStore(tmp_path / "store"))


def added(name, version, owner="ann", upload_id=None):
    return LogEntry(
        op="add",
        name=name,
        version=version,
        at="2026-01-31T06:00:00+00:00",
        sha256=f"{name}{version}",
        owner=owner,
        upload_id=upload_id or f"{name}-{version}",
    )


def filled(store, *refs):
    registry = Registry(store)
    for name, version in refs:
        registry.add(added(name, version))
    return registry


def test_the_newest_version_is_active_at_every_position(store):
    registry = filled(store, ("a", 1), ("b", 1), ("a", 2))
    assert registry.active() == {"a": AdapterRef("a", 2), "b": AdapterRef("b", 1)}
    assert registry.active(1) == {"a": AdapterRef("a", 1)}
    assert registry.active(0) == {}
    assert registry.resolve("a") == AdapterRef("a", 2)
    assert registry.resolve("a", position=2) == AdapterRef("a", 1)
    assert registry.resolve("a", 1) == AdapterRef("a", 1)


def test_removing_one_version_makes_the_older_one_active_again(store):
    registry = filled(store, ("a", 1), ("a", 2))
    assert registry.remove("a", 2) == [AdapterRef("a", 2)]
    assert registry.active() == {"a": AdapterRef("a", 1)}
    assert registry.active(2) == {"a": AdapterRef("a", 2)}  # jobs that pin the past keep it
    assert registry.resolve("a", 2, position=2) == AdapterRef("a", 2)
    with pytest.raises(NotFoundError, match="'a@2' was removed"):
        registry.resolve("a", 2)
    assert store.exists(keys.tombstone(AdapterRef("a", 2)))


def test_removing_a_name_removes_all_versions_and_a_new_one_may_follow(store):
    registry = filled(store, ("a", 1), ("a", 2))
    assert registry.remove("a") == [AdapterRef("a", 1), AdapterRef("a", 2)]
    position = registry.position
    assert registry.remove("a") == [AdapterRef("a", 1), AdapterRef("a", 2)]
    assert registry.position == position, "removing twice adds nothing to the log"
    assert registry.active() == {}
    registry.add(added("a", 3))
    assert registry.active() == {"a": AdapterRef("a", 3)}


def test_removing_what_never_was_or_is_not_ones_own_is_refused(store):
    registry = filled(store, ("a", 1))
    for name, version in (("b", None), ("a", 2)):
        with pytest.raises(NotFoundError):
            registry.remove(name, version)
    with pytest.raises(AdapterRefusedError) as refusal:
        registry.remove("a", owner="bob")
    assert refusal.value.reason == "not_owner"


def test_a_cut_between_entry_and_tombstone_is_healed_by_removing_again(store):
    registry = filled(store, ("a", 1))
    store.fail_next_put = True
    with pytest.raises(ConnectionError):
        registry.remove("a")
    store.fail_next_put = False
    assert Registry(store).remove("a") == [AdapterRef("a", 1)]
    assert store.exists(keys.tombstone(AdapterRef("a", 1)))


def test_refresh_reads_only_what_is_new_and_lists_nothing(store):
    filled(store, *(("a", n) for n in range(1, 6)))
    reader = Registry(store)
    store.calls.clear()
    assert reader.refresh() == 5
    assert store.calls == [("get", keys.registry_entry(n)) for n in range(1, 7)]
    store.calls.clear()
    reader.refresh()
    assert store.calls == [("get", keys.registry_entry(6))]


def test_a_position_ahead_is_read_and_one_ahead_of_the_log_is_an_error(store):
    reader = Registry(store)
    filled(store, ("a", 1))
    assert reader.active(1) == {"a": AdapterRef("a", 1)}
    with pytest.raises(InvalidInputError):
        reader.active(2)


def test_a_name_keeps_its_owner_even_when_removed(store):
    registry = filled(store, ("a", 1))
    registry.remove("a")
    with pytest.raises(AdapterRefusedError) as refusal:
        registry.add(added("a", 2, owner="bob"))
    assert refusal.value.reason == "not_owner"


def test_names_that_differ_by_case_only_are_refused(store):
    registry = filled(store, ("Legal", 1))
    with pytest.raises(AdapterRefusedError) as refusal:
        registry.add(added("legal", 1))
    assert refusal.value.reason == "name_collision"


def test_a_version_added_right_after_a_removal_stays(store):
    registry = filled(store, ("a", 1))
    create, others = store._store.create, [added("a", 2)]

    def then_another_writer(key, data):
        done = create(key, data)
        if others:
            Registry(store).add(others.pop())
        return done

    store._store.create = then_another_writer
    assert registry.remove("a") == [AdapterRef("a", 1)]
    assert registry.active() == {"a": AdapterRef("a", 2)}
    assert registry.position == 3


def test_equal_content_of_the_active_version_is_not_added_again(store):
    registry = filled(store, ("a", 1))
    equal = added("a", 2, upload_id="other").model_copy(update={"sha256": "a1"})
    assert registry.add(equal).ref == AdapterRef("a", 1)
    registry.remove("a")
    assert registry.add(equal).ref == AdapterRef("a", 2)


def test_one_upload_under_two_numbers_is_added_once(store):
    registry = filled(store, ("a", 1), ("a", 2))
    assert registry.add(added("a", 3, upload_id="a-1")).ref == AdapterRef("a", 1)


def test_adding_the_same_version_twice_makes_one_entry(store):
    first = Registry(store).add(added("a", 1))
    assert Registry(store).add(added("a", 1)) == first
    assert Registry(store).refresh() == 1


def test_an_edited_log_entry_is_named(store):
    filled(store, ("a", 1))
    store.put(keys.registry_entry(2), b'{"op": "explode"}')
    with pytest.raises(InvalidInputError, match="00000002.json"):
        Registry(store).refresh()


def test_racing_writers_lose_no_entry(store):
    def write(name):
        registry = Registry(store)
        for version in range(1, 13):
            registry.add(added(name, version))

    _in_threads([lambda name=name: write(name) for name in "abcd"])
    registry = Registry(store)
    assert registry.refresh() == 48
    assert registry.active() == {name: AdapterRef(name, 12) for name in "abcd"}


def test_of_two_owners_racing_for_a_new_name_one_gets_it(store):
    for number in range(8):
        refused = []

        def write(owner, version, number=number, refused=refused):
            try:
                Registry(store).add(added(f"n{number}", version, owner, f"{number}-{owner}"))
            except AdapterRefusedError as e:
                refused.append(e.reason)

        _in_threads([lambda: write("ann", 1), lambda: write("bob", 2)])
        assert refused == ["not_owner"]


def test_reading_while_refreshing_is_safe(store):
    registry = Registry(store)
    errors = []

    def read():
        try:
            while registry.position < 30:
                assert len(registry.active()) <= 1
                registry.versions("a")
        except Exception as e:
            errors.append(e)

    def write():
        for version in range(1, 31):
            registry.add(added("a", version))

    _in_threads([read, read, write])
    assert not errors


def _in_threads(functions):
    threads = [threading.Thread(target=f) for f in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

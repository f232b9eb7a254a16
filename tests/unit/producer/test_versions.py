"""Encoder and router versions from the producer's side."""

import json
from pathlib import Path
from typing import Any

import pytest

from producer import __main__ as console
from ramole_core import keys
from ramole_core.activations import Active
from ramole_core.errors import InvalidInputError, NotFoundError, UnavailableError
from ramole_core.mole.card import CARD_FILE, RouterCard
from ramole_core.retrieval.card import EncoderCard, EncoderScores
from tests.unit.producer.world import BASE, World

TIME = "2026-01-31T06:00:00+00:00"


def put_encoder(world: World, version: str, at: str = TIME) -> None:
    before = EncoderScores(num_prompts=40, top1=50.0, top3=70.0, top5=80.0, top8=90.0)
    card = EncoderCard(
        version=version,
        trained_from="enc-1",
        prefix="",
        max_tokens=256,
        tau=0.07,
        floor=0.2,
        adapters=("a", "b", "c"),
        fraction=1.0,
        seed=0,
        steps=10,
        held_out_before=before,
        held_out_after=before.model_copy(update={"top1": 61.25}),
        files={"modules.json": "0" * 64},
        created_at=at,
    )
    world.store.put(keys.encoder_files(version) + "modules.json", b"[]")
    world.store.put(keys.encoder_card(version), card.model_dump_json().encode())


def put_router(world: World, version: str, base: str = BASE.fingerprint) -> None:
    card = RouterCard(
        base=base,
        rank=8,
        adapters=("a@1", "b@1"),
        seed=0,
        encoder="enc-1",
        prior=True,
        candidates=4,
        dropout=0.5,
        steps=10,
        held_out_before=1.5,
        held_out_after=1.25,
        created_at=TIME,
    )
    world.store.put(keys.router(version) + "router.safetensors", b"")
    world.store.put(keys.router(version) + CARD_FILE, card.model_dump_json().encode())


@pytest.fixture
def ramole(world: World, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr("producer.commands.common.Client", lambda settings: world.client)

    def run(*words: str) -> tuple[int, str, str]:
        capfd.readouterr()
        code = console.main(["--home", str(world.home), *words])
        return code, *capfd.readouterr()

    return run


def test_the_list_has_the_workers_own_encoder_first_and_says_what_is_in_use(world: World) -> None:
    put_encoder(world, "e2", "2026-02-02T00:00:00+00:00")
    put_encoder(world, "e1", "2026-02-01T00:00:00+00:00")
    world.store.put(keys.encoder("cut") + "model/x.json", b"")
    world.client.use_encoder("e1")
    rows = [(row.version, row.in_use, row.card is None) for row in world.client.encoders()]
    assert rows == [("enc-1", False, True), ("e1", True, False), ("e2", False, False)]


def test_a_version_in_use_is_listed_even_when_its_card_is_damaged(world: World) -> None:
    put_encoder(world, "e1")
    world.client.use_encoder("e1")
    world.store.put(keys.encoder_card("e1"), b"{}")
    assert [(r.version, r.in_use) for r in world.client.encoders()] == [
        ("enc-1", False),
        ("e1", True),
    ]


def test_jobs_pin_what_is_in_use_when_they_are_submitted(world: World) -> None:
    put_encoder(world, "e1")
    put_router(world, "r1")
    pins = []
    for change in (
        lambda: None,
        lambda: world.client.use_encoder("e1"),
        lambda: world.client.use_router("r1"),
        lambda: world.client.rollback_encoder(),
        lambda: world.client.use_router(None),
        lambda: world.client.rollback_router(),
    ):
        change()
        job = world.client.submit(["a"])
        manifest = json.loads(world.store.get(keys.manifest(job.job_id)))
        pins.append((manifest["pins"]["encoder"], manifest["pins"]["router"]))
    assert pins == [
        ("enc-1", None),
        ("e1", None),
        ("e1", "r1"),
        ("enc-1", "r1"),
        ("enc-1", None),
        ("enc-1", "r1"),
    ]


def test_using_the_workers_own_encoder_again_needs_no_card(world: World) -> None:
    put_encoder(world, "e1")
    world.client.use_encoder("e1")
    assert world.client.use_encoder("enc-1") == Active("enc-1")


def test_an_encoder_that_is_not_there_or_has_no_card_is_refused(world: World) -> None:
    put_encoder(world, "e1")
    world.store.put(keys.encoder("cut") + "model/x.json", b"")
    for version in ("nobody", "cut"):
        with pytest.raises(NotFoundError, match=f"'{version}'.*enc-1, e1"):
            world.client.use_encoder(version)
    world.store.put(keys.encoder_card("broken"), b"{}")
    for version, reason in (("broken", "not readable"), ("../x", "letters")):
        with pytest.raises(InvalidInputError, match=reason):
            world.client.use_encoder(version)
    assert [row.version for row in world.client.encoders() if row.in_use] == ["enc-1"]


def test_a_router_of_another_base_or_without_card_is_refused(world: World) -> None:
    with pytest.raises(NotFoundError, match="'r1'.*there is none"):
        world.client.use_router("r1")
    put_router(world, "r1", base="f" * 16)
    with pytest.raises(InvalidInputError, match="another base model"):
        world.client.use_router("r1")
    world.store.put(keys.router("cut") + "router.safetensors", b"")
    with pytest.raises(NotFoundError, match="'cut'.*r1"):
        world.client.use_router("cut")
    world.store.put(keys.router("broken") + CARD_FILE, b"[]")
    with pytest.raises(InvalidInputError, match="not readable"):
        world.client.use_router("broken")
    assert [row.version for row in world.client.routers()] == ["r1"]
    assert not any(row.in_use for row in world.client.routers())


def test_there_is_an_end_to_going_back(world: World) -> None:
    for rollback in (world.client.rollback_encoder, world.client.rollback_router):
        with pytest.raises(InvalidInputError, match="no earlier"):
            rollback()


def test_before_the_first_worker_every_call_says_what_to_do(world: World) -> None:
    for key in (keys.BASE, keys.activation(1)):
        world.store.delete(key)
    client = world.client
    for call in (
        client.encoders, client.routers, client.rollback_encoder, client.rollback_router,
        lambda: client.use_encoder("e"), lambda: client.use_router(None),
        lambda: client.submit(["a"]),
    ):  # fmt: skip
        with pytest.raises(UnavailableError, match="no worker has started on this store yet"):
            call()


def test_the_tables(world: World, ramole: Any) -> None:
    put_encoder(world, "e1")
    put_router(world, "r1")
    assert ramole("encoders", "use", "e1") == (0, "in use: encoder e1, router none\n", "")
    assert ramole("routers", "use", "r1") == (0, "in use: encoder e1, router r1\n", "")
    header, own, trained = ramole("encoders", "list")[1].splitlines()
    assert header.split()[:4] == ["VERSION", "STATE", "TRAINED", "FROM"]
    assert own.split() == ["enc-1", *"-" * 7]
    assert trained.split()[:5] == ["e1", "in", "use", "enc-1", "3"]
    assert "50.0 → 61.2" in trained and "0.07" in trained and TIME in trained
    header, row = ramole("routers", "list")[1].splitlines()
    assert row.split()[:6] == ["r1", "in", "use", "8", BASE.fingerprint, "2"]
    assert "1.500 → 1.250" in row
    assert ramole("routers", "use", "none")[1] == "in use: encoder e1, router none\n"
    assert ramole("encoders", "rollback")[1] == "in use: encoder enc-1, router none\n"


def test_json_outputs(world: World, ramole: Any) -> None:
    put_encoder(world, "e1")
    put_router(world, "r1")
    for words, wanted in (
        (("encoders", "use", "e1"), {"encoder": "e1", "router": None}),
        (("routers", "use", "r1"), {"encoder": "e1", "router": "r1"}),
        (("routers", "rollback"), {"encoder": "e1", "router": None}),
        (("encoders", "rollback"), {"encoder": "enc-1", "router": None}),
    ):
        assert json.loads(ramole(*words, "--json")[1]) == wanted
    rows = [json.loads(line) for line in ramole("encoders", "list", "--json")[1].splitlines()]
    assert [(row["version"], row["in_use"]) for row in rows] == [("enc-1", True), ("e1", False)]
    assert rows[0]["card"] is None and rows[1]["card"]["held_out_after"]["top1"] == 61.25
    (row,) = [json.loads(line) for line in ramole("routers", "list", "--json")[1].splitlines()]
    assert row["card"]["rank"] == 8


def test_a_refusal_is_one_line_and_an_exit_code(world: World, ramole: Any) -> None:
    for words, exit_code in (
        (("encoders", "use", "nobody"), 4),
        (("routers", "use", "nobody"), 4),
        (("encoders", "rollback"), 2),
        (("routers", "rollback"), 2),
    ):
        code, out, err = ramole(*words)
        assert (code, out, err.count("\n")) == (exit_code, "", 1)


def test_doctor_looks_at_what_is_in_use(world: World, ramole: Any, tmp_path: Path) -> None:
    def checks() -> dict[str, Any]:
        lines = ramole("doctor", "--json")[1].splitlines()
        return {check["name"]: check for check in map(json.loads, lines)}

    assert checks()["encoder"]["ok"] and "enc-1" in checks()["encoder"]["detail"]
    assert checks()["router"]["ok"] and checks()["router"]["detail"] == "none in use"
    put_encoder(world, "e1")
    put_router(world, "r1")
    world.client.use_encoder("e1")
    world.client.use_router("r1")
    assert checks()["encoder"]["ok"] and checks()["router"]["ok"]
    world.store.delete(keys.encoder_files("e1") + "modules.json")
    world.store.delete(keys.router("r1") + "router.safetensors")
    found = checks()
    assert not found["encoder"]["ok"] and "modules.json" in found["encoder"]["detail"]
    assert not found["router"]["ok"] and "router.safetensors" in found["router"]["detail"]

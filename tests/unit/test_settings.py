"""Settings: where they come from, what is refused, what is never shown."""

from pathlib import Path

import pytest

from ramole_core.errors import ConfigError
from ramole_core.settings import Settings, describe, redacted


def test_the_environment_wins_over_the_file_and_the_caller_over_both(tmp_path: Path) -> None:
    (tmp_path / "ramole.toml").write_text('batch_size = 4\nbank_size = 7\nmodel_aliases = ["a"]\n')
    env = {"RAMOLE_HOME": str(tmp_path), "RAMOLE_BATCH_SIZE": "5"}
    settings = Settings.load(env)
    assert (settings.batch_size, settings.bank_size, settings.model_aliases) == (5, 7, ("a",))
    assert Settings.load(env, batch_size=6).batch_size == 6


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("RAMOLE_BATCHSIZE", "4", "no such setting"),
        ("RAMOLE_BATCH_SIZE", "0", "RAMOLE_BATCH_SIZE='0': must be a number from 1 to 4096"),
        ("RAMOLE_BATCH_SIZE", "many", "a number"),
        ("RAMOLE_DTYPE", "int4", "one of auto, float32"),
        ("RAMOLE_LEASE_SECONDS", "nan", "a number"),
        ("RAMOLE_MAX_BATCH_TOKENS", "255", "must be 0 or a number from 256 to 1073741824"),
        ("RAMOLE_MAX_BATCH_TOKENS", "-1", "0 or a number"),
        ("RAMOLE_MAX_BATCH_TOKENS", "auto", "0 or a number"),
    ],
)
def test_unknown_names_and_bad_values_are_refused_with_the_variable(
    variable: str, value: str, said: str
) -> None:
    with pytest.raises(ConfigError, match=variable) as caught:
        Settings.load({variable: value})
    assert said in str(caught.value)


@pytest.mark.parametrize("value", ["0", "256", "65536"])
def test_the_tokens_of_a_batch_are_a_number_or_left_to_the_memory(value: str) -> None:
    assert Settings.load({"RAMOLE_MAX_BATCH_TOKENS": value}).max_batch_tokens == int(value)
    assert Settings.load({}).max_batch_tokens == 0


def test_a_broken_or_unknown_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "ramole.toml").write_text("batch_size = [")
    with pytest.raises(ConfigError, match="ramole.toml: not a readable TOML"):
        Settings.load({}, home=tmp_path)
    (tmp_path / "ramole.toml").write_text("colour = 'red'")
    with pytest.raises(ConfigError, match="colour: no such setting"):
        Settings.load({}, home=tmp_path)


def test_secrets_are_not_shown() -> None:
    settings = Settings.load({"RAMOLE_STORE_SECRET_KEY": "hush", "RAMOLE_STORE_ACCESS_KEY": "me"})
    assert "hush" not in repr(settings) and "me'" not in repr(settings)
    assert redacted("redis://user:hush@h:1/0") == "redis://***@h:1/0"
    assert (
        redacted("cannot reach redis://:hush@h:1/0, sorry")
        == "cannot reach redis://***@h:1/0, sorry"
    )
    for url in ("redis://h/0?password=hush", "redis://h/0?password=x@hush", "redis://:1/hush@h",
                "redis://:1?hush@h", "redis://:1#hush@h", "REDIS://:hush@h", "unix://me:hush@/s",
                "unix://:a/b@hush@/s", "unix://:hush?x@/s", "unix:///s?password=hush"):  # fmt: skip
        assert "hush" not in redacted(url), url
    broker = Settings.load({"RAMOLE_BROKER_URL": "redis://:hush@h:1/0"})
    assert "hush" not in repr(broker)

    assert redacted("unix:///run/r.sock?db=1") == "unix:///run/r.sock"
    assert redacted("unix://me:hush@/run/r.sock") == "unix://***@/run/r.sock"


@pytest.mark.parametrize(
    "url", ["redis://:hush word@h:1/0", "redis://:hush@h\n", "hush@h:1", "h://hush"]
)
def test_a_broker_url_of_which_a_part_might_be_shown_is_refused_unseen(url: str) -> None:
    with pytest.raises(ConfigError, match="^RAMOLE_BROKER_URL: must be a redis://, ") as caught:
        Settings.load({"RAMOLE_BROKER_URL": url})
    assert "hush" not in str(caught.value)


@pytest.mark.parametrize("variable", ["RAMOLE_BROKER_CA_FILE", "RAMOLE_STORE_CA_FILE"])
def test_a_ca_file_is_there_and_holds_a_certificate(variable: str, tmp_path: Path) -> None:
    path = tmp_path / "ca.pem"
    with pytest.raises(ConfigError, match=f"^{variable}='{path}': .*: No such file"):
        Settings.load({variable: str(path)})
    path.write_text("no certificate")
    with pytest.raises(ConfigError, match=f"^{variable}='{path}': .* there is no certificate"):
        Settings.load({variable: str(path)})


def test_a_long_home_gets_a_short_socket(tmp_path: Path) -> None:
    deep = tmp_path / ("x" * 60) / ("y" * 60)
    assert len(str(Settings.load({}, home=deep).socket_path)) < 108
    assert Settings.load({}, home=Path("/srv/r")).socket_path == Path("/srv/r/broker.sock")


@pytest.mark.parametrize("name", ["plain", "with space", "ünï#q?", "per%20cent"])
def test_redis_and_kombu_find_the_socket_of_any_home(name: str, tmp_path: Path) -> None:
    from kombu import Connection
    from redis import Redis

    from ramole_core import messages
    from tests.servers import redis_server

    home = tmp_path / name
    home.mkdir()
    settings = Settings.load({}, home=home)
    with redis_server(settings.socket_path.parent):
        (settings.socket_path.parent / "r.sock").rename(settings.socket_path)
        assert Redis.from_url(settings.redis_url).ping()
        options = messages.celery_settings(settings)["broker_transport_options"]
        with Connection(settings.celery_url, transport_options=options) as connection:
            connection.ensure_connection(max_retries=1, timeout=5)


def test_every_setting_is_described() -> None:
    rows = describe()
    assert all(variable.startswith("RAMOLE_") and meaning for variable, _, meaning in rows)
    assert len(rows) == len({variable for variable, _, _ in rows})


def test_a_lease_outlives_two_looks_for_lost_shards() -> None:
    assert Settings.load({"RAMOLE_LEASE_SECONDS": "6"}).reaper_seconds == 3.0
    with pytest.raises(ConfigError, match=r"LEASE_SECONDS=5: .*twice RAMOLE_REAPER_SECONDS=3"):
        Settings.load({"RAMOLE_LEASE_SECONDS": "5"})

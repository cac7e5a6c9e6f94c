from __future__ import annotations

from pathlib import Path

import pytest

from triptych.checkpoints.entries import user_models_file
from triptych.checkpoints.registry import default_models_folder
from triptych.contract import StageName
from triptych.errors import StartError
from triptych.serving.keys import read_key
from triptych.serving.settings import GATEWAY_PORT, STAGE_PORTS, StageSettings, is_loopback, read_settings
from triptych.stages.options import StageOptions


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch):
    def set_variables(**variables: str) -> None:
        for name, value in variables.items():
            monkeypatch.setenv(f"TRIPTYCH_{name}", value)

    return set_variables


def test_settings_are_what_a_stage_wants_to_be_told(cache_folder: Path) -> None:
    options: StageOptions = read_settings(StageSettings)
    assert (options.model, options.engine, options.precision) == ("vignette", "openvino", "auto")
    assert (options.batch_sizes, options.sizes, options.threads) == (None, None, None)
    assert (options.queue_size, options.cached_contexts) == (64, 256)
    assert options.cache_folder == cache_folder


def test_the_environment_decides(environment) -> None:
    environment(MODEL="/models/sd", ENGINE="jax", BATCH_SIZES="1, 2,4", SIZES="512x512,768x512", THREADS="3", TOKEN="s3cret")
    settings = read_settings(StageSettings)
    assert (settings.model, settings.engine, settings.threads) == ("/models/sd", "jax", 3)
    assert settings.batch_sizes == (1, 2, 4)
    assert settings.sizes == ((512, 512), (768, 512))
    assert settings.demanded_keys() == (read_key("s3cret"),)


class TestTheModel:
    def test_it_may_be_told_as_model_alone(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("MODEL", "sd-v1-5")
        assert read_settings(StageSettings).model == "sd-v1-5"

    def test_our_own_variable_goes_before_it(self, environment, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("MODEL", "of-somebody-else")
        environment(MODEL="sd-v1-5")
        assert read_settings(StageSettings).model == "sd-v1-5"

    def test_an_empty_one_of_ours_does_not(self, environment, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("MODEL", "sd-v1-5")
        environment(MODEL="")
        assert read_settings(StageSettings).model == "sd-v1-5"

    def test_what_is_given_goes_before_both(self, environment, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("MODEL", "a")
        environment(MODEL="b")
        assert read_settings(StageSettings, model="c").model == "c"

    def test_where_models_are(self, environment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        environment(MODELS_FILE=str(tmp_path / "mine.toml"), MODELS_FOLDER=str(tmp_path / "mine"))
        settings = read_settings(StageSettings)
        assert (settings.models_file, settings.models_folder) == (tmp_path / "mine.toml", tmp_path / "mine")

    def test_where_they_are_by_default_is_where_the_registry_looks(self, environment) -> None:
        environment(MODELS_FILE="", MODELS_FOLDER="")
        settings = read_settings(StageSettings)
        assert (settings.models_file, settings.models_folder) == (user_models_file(), default_models_folder())


def test_a_list_of_one_is_a_list(environment) -> None:
    environment(BATCH_SIZES="1", SIZES="512x512")
    settings = read_settings(StageSettings)
    assert (settings.batch_sizes, settings.sizes) == ((1,), ((512, 512),))


def test_what_is_given_goes_before_the_environment(environment) -> None:
    environment(PORT="1")
    assert read_settings(StageSettings, port=2).port == 2


def test_an_empty_variable_is_none(environment) -> None:
    environment(TOKEN="", PORT="", BATCH_SIZES="")
    settings = read_settings(StageSettings)
    assert (settings.token, settings.port, settings.batch_sizes) == ((), None, None)


@pytest.mark.parametrize(
    ("variables", "sentence"),
    [
        ({"PORT": "x"}, "^TRIPTYCH_PORT: Input should be a valid integer"),
        ({"PORT": "65536"}, "^TRIPTYCH_PORT: Input should be less than or equal to 65535"),
        ({"ENGINE": "torch"}, "^TRIPTYCH_ENGINE: Input should be 'openvino', 'tensorflow' or 'jax'"),
        ({"BATCH_SIZES": "1,0"}, "^TRIPTYCH_BATCH_SIZES: Input should be greater than 0"),
        ({"SIZES": "512"}, "^TRIPTYCH_SIZES: a size is width x height in pixels, such as 512x512"),
        ({"SIZES": "0x512"}, "^TRIPTYCH_SIZES: Input should be greater than 0"),
        ({"TOKEN": "two words"}, "^TRIPTYCH_TOKEN: a token must be printable ASCII without blanks"),
        ({"TOKEN": "schlüssel"}, "^TRIPTYCH_TOKEN: a token must be printable ASCII"),
        ({"TOKEN": "mine:sha256:abc"}, "^TRIPTYCH_TOKEN: a hashed key is name:sha256:<64 hexadecimal digits>"),
        ({"TOKEN": "sha256:" + "a" * 64}, "^TRIPTYCH_TOKEN: a hashed key is name:sha256:"),
        ({"TOKEN": "one,two,one"}, "^TRIPTYCH_TOKEN: two keys have the same name, or are the same"),
        ({"TOKEN": "one,,two"}, "^TRIPTYCH_TOKEN: a token must be printable ASCII"),
        ({"RATE_LIMIT": "often"}, "^TRIPTYCH_RATE_LIMIT: a rate is a number of requests and a time, such as 60/minute"),
        ({"RATE_LIMIT": "0/minute"}, "^TRIPTYCH_RATE_LIMIT: a rate allows one request at least"),
        ({"TLS_CERTIFICATE": "nowhere.pem"}, "^TRIPTYCH_TLS_CERTIFICATE: Path does not point to a file"),
        ({"TLS_KEY": __file__}, "^TRIPTYCH_TLS_KEY is of no use without TRIPTYCH_TLS_CERTIFICATE"),
        ({"TLS_CERTIFICATE": __file__}, "^TRIPTYCH_TLS_CERTIFICATE and TRIPTYCH_TLS_KEY are not a certificate and its key"),
        ({"REQUEST_TIMEOUT_SECONDS": "0"}, "^TRIPTYCH_REQUEST_TIMEOUT_SECONDS: Input should be greater than 0"),
        ({"PORT": "x", "QUEUE_SIZE": "-1"}, "TRIPTYCH_PORT: .*; TRIPTYCH_QUEUE_SIZE: "),
    ],
)
def test_an_impossible_value_is_refused_under_its_variables_name(environment, variables, sentence) -> None:
    environment(**variables)
    with pytest.raises(StartError, match=sentence):
        read_settings(StageSettings)


def test_a_refused_token_is_not_shown(environment) -> None:
    environment(TOKEN="my very secret")
    with pytest.raises(StartError) as refused:
        read_settings(StageSettings)
    assert "secret" not in str(refused.value)
    assert refused.value.__cause__ is None


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.0.7", "stage.example.org", ""])
def test_listening_to_others_demands_a_token(environment, host) -> None:
    with pytest.raises(StartError, match="lets other machines in: set TRIPTYCH_TOKEN, or TRIPTYCH_INSECURE=true"):
        read_settings(StageSettings, host=host)
    assert read_settings(StageSettings, host=host, insecure=True).demanded_keys() == ()
    environment(TOKEN="s3cret")
    assert read_settings(StageSettings, host=host).host == host


@pytest.mark.parametrize(
    ("host", "expected"), [("127.0.0.1", True), ("127.8.8.8", True), ("::1", True), ("localhost", True), ("::", False)]
)
def test_what_is_loopback(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected


def test_every_setting_says_what_it_means() -> None:
    assert [name for name, field in StageSettings.model_fields.items() if not field.description] == []


def test_ports() -> None:
    assert [GATEWAY_PORT, *(STAGE_PORTS[stage] for stage in StageName)] == [8000, 8001, 8002, 8003]

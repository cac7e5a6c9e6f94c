"""What a service is told by its environment: read when its app is made, and refused with a sentence that helps."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import platformdirs
from pydantic import (
    AfterValidator,
    AliasChoices,
    BeforeValidator,
    Field,
    PositiveInt,
    SecretStr,
    ValidationError,
    model_validator,
)
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from triptych.contract import StageName
from triptych.errors import StartError

GATEWAY_PORT = 8000
STAGE_PORTS: Mapping[StageName, int] = {StageName.TEXT_ENCODER: 8001, StageName.DIFFUSION: 8002, StageName.DECODER: 8003}

Settings = TypeVar("Settings", bound=BaseSettings)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server that is bound to a host."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _split(value: Any) -> Any:
    return [part.strip() for part in value.split(",")] if isinstance(value, str) else value


def _read_size(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    width, cross, height = value.partition("x")
    if not (width.isdecimal() and cross and height.isdecimal()):
        raise ValueError("a size is width x height in pixels, such as 512x512")
    return int(width), int(height)


def _check_token(token: SecretStr) -> SecretStr:
    text = token.get_secret_value()
    if not (text.isascii() and text.isprintable() and text) or " " in text:
        raise ValueError("a token must be printable ASCII without blanks")
    return token


Token = Annotated[SecretStr, AfterValidator(_check_token)]
Tokens = Annotated[tuple[Token, ...], NoDecode, BeforeValidator(_split)]
"""Several tokens in one variable, separated by commas."""

Size = Annotated[tuple[PositiveInt, PositiveInt], BeforeValidator(_read_size)]


class ServerSettings(BaseSettings):
    """What every service is told, whichever it is."""

    model_config = SettingsConfigDict(
        env_prefix="TRIPTYCH_",
        env_ignore_empty=True,
        frozen=True,
        populate_by_name=True,
        hide_input_in_errors=True,
        use_attribute_docstrings=True,
    )

    host: str = "127.0.0.1"
    """Address to listen on. Anything but this machine itself demands a token, or `insecure`."""

    port: Annotated[int, Field(ge=0, le=65535)] | None = None
    """Port to listen on; by default the service's own: gateway 8000, text_encoder 8001, diffusion 8002, decoder 8003."""

    insecure: bool = False
    """Serve everybody who can reach the port, without a token."""

    max_body_bytes: PositiveInt = 32 * 2**20
    """The largest request that is read."""

    request_timeout_seconds: Annotated[float, Field(gt=0)] = 600.0
    """The longest that a request may take; a caller may ask for less."""

    shutdown_seconds: Annotated[float, Field(ge=0)] = 30.0
    """How long running requests may go on after SIGTERM."""

    log_format: Literal["auto", "console", "json"] = "auto"
    """`json`: one object a line. `auto` is `console` at a terminal and `json` elsewhere."""

    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """What is logged at least. Health checks and the like are `debug`."""

    def demanded_tokens(self) -> tuple[str, ...]:
        """Any of these opens the door; none means that it stands open."""
        return ()

    @model_validator(mode="after")
    def _lock_the_door(self) -> ServerSettings:
        if not is_loopback(self.host) and not self.demanded_tokens() and not self.insecure:
            raise ValueError(
                f"listening on {self.host} lets other machines in: set {self.token_variable()}, "
                "or TRIPTYCH_INSECURE=true to serve everybody"
            )
        return self

    @classmethod
    def token_variable(cls) -> str:
        """The environment variable that sets what `demanded_tokens` answers."""
        return "TRIPTYCH_TOKEN"


class StageSettings(ServerSettings):
    """What a stage service is told: the three are told alike."""

    shutdown_seconds: Annotated[float, Field(ge=0)] = 600.0
    """How long running requests may go on after SIGTERM: by default as long as a request may take. Nothing new is taken
    meanwhile, and the stage ends when the last is done."""

    model: Annotated[str, Field(validation_alias=AliasChoices("TRIPTYCH_MODEL", "MODEL"))] = "vignette"
    """A name of `triptych models list`; the path of a diffusers folder or of a .safetensors file; or `owner/name` on the Hub,
    with `@revision` if need be. `MODEL` is read where this is not set."""

    models_file: Path = Field(default_factory=lambda: platformdirs.user_config_path("triptych") / "models.toml")
    """Your own models by name; by default `triptych/models.toml` in the user's folder for configuration."""

    models_folder: Path = Field(default_factory=lambda: platformdirs.user_data_path("triptych") / "models")
    """Where models are kept that `triptych pull` wrote; by default `triptych/models` in the user's folder for data. What comes
    from the Hub is in the Hub's own cache (`HF_HOME`)."""

    engine: Literal["openvino", "tensorflow", "jax"] = "openvino"
    """What runs the network."""

    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Of the network's arithmetic; `auto` is what the engine finds best on this machine."""

    threads: PositiveInt | None = None
    """CPU threads that the network may use; by default all."""

    batch_sizes: Annotated[tuple[PositiveInt, ...] | None, NoDecode, BeforeValidator(_split)] = None
    """Numbers of rows for which the network is compiled, such as `1,2,4`: each costs a copy of the weights. By default the
    stage's own choice: the fewer, the larger the network; at Stable Diffusion's size 1 and 2 for the text encoder, 2 for the
    U-Net (a picture and its negative prompt), 1 for the decoder."""

    exact: bool = True
    """A picture's bytes depend on its request alone: only batch sizes that are exact are run. `false` runs all of them."""

    sizes: Annotated[tuple[Size, ...] | None, NoDecode, BeforeValidator(_split)] = None
    """Pictures to be ready for, width first, such as `512x512,768x512`; the first is the default. Else the model decides."""

    queue_size: Annotated[int, Field(ge=0)] = 64
    """Jobs that may wait for the network; one more is refused with 429."""

    max_rows: PositiveInt = 64
    """Rows that one request may have."""

    max_requests: PositiveInt = 128
    """Requests that are read or worked on at the same time; one more is refused with 429, unread."""

    max_prompt_chunks: PositiveInt = 1
    """Chunks of a context that a long prompt may have, as in `long_prompt=true`; told to the text encoder and the diffusion stage
    alike. For each number of chunks the diffusion stage has a network of its own, which costs another copy of the weights."""

    cached_contexts: Annotated[int, Field(ge=0)] = 256
    """Prompts whose contexts the text encoder keeps; 0 keeps none."""

    cache_folder: Path = Field(default_factory=lambda: platformdirs.user_cache_path("triptych"))
    """Where compiled networks are kept; by default `triptych` in the user's folder for caches."""

    cache_bytes: Annotated[int, Field(ge=0)] | None = None
    """Bytes that compiled networks may take: after each start those that were not used for longest are removed, and none that a
    process uses. By default all are kept: one of Stable Diffusion's U-Net takes 3.4 GB for each size of picture."""

    token: Token | None = None
    """What a caller must send as `Authorization: Bearer`."""

    def demanded_tokens(self) -> tuple[str, ...]:
        return () if self.token is None else (self.token.get_secret_value(),)


def read_settings(kind: type[Settings], **values: Any) -> Settings:
    """Settings from the environment.

    Args:
        kind: Which ones.
        values: Fields that are given here, whatever the environment says.

    Raises:
        StartError: A value is impossible; the sentence names its variable.
    """
    try:
        return kind(**values)
    except ValidationError as error:
        prefix = kind.model_config.get("env_prefix", "")
        raise StartError("; ".join(_complaint(prefix, each["loc"], each["msg"]) for each in error.errors())) from None


def _complaint(prefix: str, location: tuple[int | str, ...], message: str) -> str:
    message = message.removeprefix("Value error, ")
    return f"{prefix}{location[0]}".upper() + f": {message}" if location else message

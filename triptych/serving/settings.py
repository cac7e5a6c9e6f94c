"""What a service is told by its environment: read when its app is made, and refused with a sentence that helps."""

from __future__ import annotations

import ipaddress
import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import platformdirs
from pydantic import (
    AfterValidator,
    AliasChoices,
    BeforeValidator,
    DirectoryPath,
    Field,
    FilePath,
    PositiveInt,
    SecretStr,
    ValidationError,
    model_validator,
)
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from triptych.contract import StageName
from triptych.errors import StartError
from triptych.serving.keys import Key, is_like_a_hash, read_key
from triptych.serving.rate_limit import read_rate

GATEWAY_PORT = 8000
STAGE_PORTS: Mapping[StageName, int] = {StageName.TEXT_ENCODER: 8001, StageName.DIFFUSION: 8002, StageName.DECODER: 8003}

Settings = TypeVar("Settings", bound=BaseSettings)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server that is bound to a host."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def split(value: Any) -> Any:
    """The parts of a variable that has several, separated by commas."""
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
    if is_like_a_hash(text) or "," in text:
        raise ValueError("this token is sent: it must be one key itself, neither its hash nor several")
    read_key(text)
    return token


Token = Annotated[SecretStr, AfterValidator(_check_token)]
"""A token that is sent."""


def _read_key(value: Any) -> Any:
    return read_key(value) if isinstance(value, str) else value


def _check_names(keys: tuple[Key, ...]) -> tuple[Key, ...]:
    if len({key.name for key in keys}) < len(keys):
        raise ValueError("two keys have the same name, or are the same")
    return keys


Keys = Annotated[
    tuple[Annotated[Key, BeforeValidator(_read_key)], ...], NoDecode, BeforeValidator(split), AfterValidator(_check_names)
]
"""Keys that are demanded, several in one variable, separated by commas."""


def _check_rate(text: str) -> str:
    read_rate(text)
    return text


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

    tls_certificate: FilePath | None = None
    """The service's certificate and whatever leads to who vouches for it, as PEM: it then speaks HTTPS only."""

    tls_key: FilePath | None = None
    """The certificate's private key, as PEM without a password; by default in the certificate's own file."""

    rate_limit: Annotated[str, AfterValidator(_check_rate)] | None = None
    """How much each key may ask for, such as `60/minute`; one more request is refused with 429. Counted are requests that want
    work done (POST), by each process for itself. Without keys all callers count as one. By default there is no limit."""

    max_body_bytes: PositiveInt = 32 * 2**20
    """The largest request that is read."""

    body_timeout_seconds: Annotated[float, Field(gt=0)] = 60.0
    """How long the whole body of a request may take to arrive; one that has not is refused with 408, its connection closed."""

    request_timeout_seconds: Annotated[float, Field(gt=0)] = 600.0
    """The longest that a request may take; a caller may ask for less."""

    shutdown_seconds: Annotated[float, Field(ge=0)] = 30.0
    """How long running requests may go on after SIGTERM."""

    log_format: Literal["auto", "console", "json"] = "auto"
    """`json`: one object a line. `auto` is `console` at a terminal and `json` elsewhere."""

    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """What is logged at least. Health checks and the like are `debug`."""

    def demanded_keys(self) -> tuple[Key, ...]:
        """Any of these opens the door; none means that it stands open."""
        return ()

    @model_validator(mode="after")
    def _lock_the_door(self) -> ServerSettings:
        if not is_loopback(self.host) and not self.demanded_keys() and not self.insecure:
            raise ValueError(
                f"listening on {self.host} lets other machines in: set {self.token_variable()}, "
                "or TRIPTYCH_INSECURE=true to serve everybody"
            )
        return self

    @model_validator(mode="after")
    def _try_the_certificate(self) -> ServerSettings:
        if self.tls_certificate is None:
            if self.tls_key is not None:
                raise ValueError("TRIPTYCH_TLS_KEY is of no use without TRIPTYCH_TLS_CERTIFICATE")
            return self
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(self.tls_certificate, self.tls_key, password=lambda: "")
        except (OSError, ValueError) as error:  # of which ssl.SSLError is one
            raise ValueError(
                f"TRIPTYCH_TLS_CERTIFICATE and TRIPTYCH_TLS_KEY are not a certificate and its key: {error}"
            ) from None
        return self

    @classmethod
    def token_variable(cls) -> str:
        """The environment variable that sets what `demanded_keys` answers."""
        return "TRIPTYCH_TOKEN"


class StageSettings(ServerSettings):
    """What a stage service is told: the three are told alike."""

    shutdown_seconds: Annotated[float, Field(ge=0)] = 600.0
    """How long running requests may go on after SIGTERM that nobody else can finish: by default as long as a request may take.
    Nothing new is taken meanwhile, denoisings that others can finish are handed back at once, and the stage ends when the last
    request is done."""

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

    precision: Literal["auto", "float32", "bfloat16", "float16", "int8"] = "auto"
    """Of the network's arithmetic; `auto` is what the engine finds best on this machine. Where the processor lacks one the next
    best is taken, which the log and the metadata's `numerics` say: for `float16` that is `bfloat16`, for `bfloat16` `float32`.
    `int8` is for networks that `triptych quantize` has quantized; text encoder and image encoder then compute as under `auto`."""

    threads: PositiveInt | None = None
    """CPU threads that the network may use; by default all."""

    batch_sizes: Annotated[tuple[PositiveInt, ...] | None, NoDecode, BeforeValidator(split)] = None
    """Numbers of rows for which the network is compiled, such as `1,2,4`: each costs a copy of the weights. By default the
    stage's own choice: the fewer, the larger the network; at Stable Diffusion's size 1 and 2 for the text encoder, 2 for the
    U-Net (a picture and its negative prompt), 1 for the decoder."""

    exact: bool = True
    """A picture's bytes depend on its request alone: only batch sizes that are exact are run. `false` runs all of them."""

    sizes: Annotated[tuple[Size, ...] | None, NoDecode, BeforeValidator(split)] = None
    """Pictures to be ready for, width first, such as `512x512,768x512`; the first is the default. Else the model decides."""

    tile_side: PositiveInt = 1024
    """Pixels: a picture that is wider or higher than this is decoded, and encoded, in tiles that are not: memory grows with the
    tile then, and little with the picture, at three times the time, which up to the default what is saved is hardly worth."""

    preview_decoder: DirectoryPath | None = None
    """Folder of a tiny autoencoder in diffusers' layout (AutoencoderTiny, such as TAESD) that decodes previews, never pictures.
    By default `tiny_vae` in the model's own folder; where there is none, previews are decoded like pictures."""

    preview_precision: Literal["auto", "int8"] = "auto"
    """Of the preview decoder: `auto` is as for pictures, but float where those are in int8. With `int8`, whatever pictures are
    in, `triptych quantize` quantizes it too, and a decoder on OpenVINO runs it so."""

    queue_size: Annotated[int, Field(ge=0)] = 64
    """Jobs that may wait for the network; one more is refused with 429."""

    max_rows: PositiveInt = 64
    """Rows that one request may have."""

    max_requests: PositiveInt = 128
    """Requests that are read or worked on at the same time; one more is refused with 429, unread."""

    max_held_bytes: PositiveInt = 2**30
    """Bytes that the bodies of all these requests may have together; one more is refused with 429, unread. A body that does not
    announce its size counts as the largest that is read."""

    memory_bytes: PositiveInt | None = None
    """Bytes of memory that the pictures on their way at a stage may take together, with one call of its network, beside what the
    network keeps; one more is refused with 429, and what would never fit with 413. What a picture takes is in the metadata. By
    default a quarter of what the machine, or the process's cgroup, has left when the stage is ready, and in any case enough for
    8 pictures of the largest size."""

    max_prompt_chunks: PositiveInt = 1
    """Chunks of a context that a long prompt may have, as in `long_prompt=true`; told to the text encoder and the diffusion stage
    alike. For each number of chunks the diffusion stage has a network of its own, which costs another copy of the weights."""

    feature_reuse: bool = False
    """The diffusion stage takes `cache_interval`: most evaluations of such a request compute a shallow part of the U-Net, on what
    all of it found out in an earlier one. For each size of picture it has a second network, which costs time at the start and
    memory; and what is kept of a picture between two evaluations is more."""

    cached_contexts: Annotated[int, Field(ge=0)] = 256
    """Prompts whose contexts the text encoder keeps; 0 keeps none."""

    cache_folder: Path = Field(default_factory=lambda: platformdirs.user_cache_path("triptych"))
    """Where compiled networks are kept; by default `triptych` in the user's folder for caches."""

    quantized_folder: Path = Field(default_factory=lambda: platformdirs.user_data_path("triptych") / "quantized")
    """Where `triptych quantize` keeps what it made, and `int8` looks for it: a folder that may be carried to other machines. By
    default `triptych/quantized` in the user's folder for data."""

    cache_bytes: Annotated[int, Field(ge=0)] | None = None
    """Bytes that compiled networks may take: after each start those that were not used for longest are removed, and none that a
    process uses. By default all are kept: one of Stable Diffusion's U-Net takes 3.4 GB for each size of picture."""

    token: Keys = ()
    """What a caller must send as `Authorization: Bearer`; several are separated by commas, each either the token itself or
    what `triptych keys new` prints of it, `name:sha256:<hash>`."""

    def demanded_keys(self) -> tuple[Key, ...]:
        return self.token


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

"""What a gateway is told by its environment."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import platformdirs
from pydantic import AfterValidator, BeforeValidator, Field, FilePath, PositiveInt, SecretStr, model_validator
from pydantic_settings import NoDecode

from triptych.serving.keys import Key
from triptych.serving.settings import Keys, ServerSettings, Token, split

_ORIGIN = re.compile(r"https?://[A-Za-z0-9.-]+(:[0-9]{1,5})?|https?://\[[0-9a-f:]+\](:[0-9]{1,5})?")


def _check_origin(origin: str) -> str:
    if not _ORIGIN.fullmatch(origin):
        raise ValueError("an origin is a scheme and a host, such as https://pictures.example.org, and no * or path")
    return origin


Origin = Annotated[str, AfterValidator(_check_origin)]


class GatewaySettings(ServerSettings):
    """What the gateway is told on top of what every service is."""

    max_body_bytes: PositiveInt = 2**24
    """The largest request that is read, its pictures included."""

    max_held_bytes: PositiveInt = 2**30
    """Bytes that the bodies of all requests that are here may have together, of detached ones and of jobs at work too, and the
    pictures in them once they are decoded; one more is refused with 429, and a job waits. A body that does not announce its size
    counts as the largest that is read."""

    max_image_pixels: PositiveInt = 2**24
    """The largest picture that is decoded, width times height."""

    api_keys: Keys = ()
    """What callers send as `Authorization: Bearer`; several are separated by commas, each either the key itself or what
    `triptych keys new` prints of it, `name:sha256:<hash>`. None: everybody may call."""

    admin_token: Keys = ()
    """What `triptych swap` sends as `Authorization: Bearer`, written like `api_keys`. None: stages are swapped from this machine
    alone, and only where there are no `api_keys`."""

    cors_origins: Annotated[tuple[Origin, ...], NoDecode, BeforeValidator(split)] = ()
    """Pages of other sites that may call from a browser, such as `https://pictures.example.org`; several are separated by
    commas. None: the gateway's own page alone."""

    topology: Path | None = None
    """A TOML file that names the models and says where their stages are, followed while it changes; see `docs/topology.md`. It
    goes before the four addresses and `model_name` below; where it does not exist it is written from them."""

    text_encoder_url: str = "http://127.0.0.1:8001"
    """Where the text encoder is."""

    diffusion_url: str = "http://127.0.0.1:8002"
    """Where the diffusion model is."""

    decoder_url: str = "http://127.0.0.1:8003"
    """Where the decoder is."""

    image_encoder_url: str = ""
    """Where the image encoder is; by default with the decoder."""

    stage_token: Token | None = None
    """What the stages demand, one of their `TRIPTYCH_TOKEN`: the key itself, since it is sent."""

    stage_ca_file: FilePath | None = None
    """Certificates, as PEM, of who vouches for stages at `https://` addresses; by default what this machine trusts."""

    model_name: str = ""
    """What callers name as `model`; by default the name that the diffusion stage gives itself."""

    swap_timeout_seconds: Annotated[float, Field(gt=0)] = 120.0
    """How long the picture of one step may take that a new stage makes before it is swapped in."""

    max_running_requests: PositiveInt = 32
    """Requests that the stages are given at the same time."""

    max_waiting_requests: Annotated[int, Field(ge=0)] = 128
    """Requests that may wait for their turn; one more is refused with 429."""

    stage_wait_seconds: Annotated[float, Field(ge=0)] = 600.0
    """How long a request waits, within its own deadline, for a stage that is gone, starting or being exchanged; 0 refuses it
    with 503 at once."""

    stall_seconds: Annotated[float, Field(gt=0)] = 5.0
    """How long a stage may be silent in the middle of a request before the gateway asks whether it is still there; eight times
    what it usually takes between two answers, where that is longer."""

    context_cache_bytes: Annotated[int, Field(ge=0)] = 2**26
    """Contexts of prompts that the gateway keeps, the latest ones; 0 keeps none."""

    poll_seconds: Annotated[float, Field(gt=0)] = 2.0
    """How often the stages are asked who they are, so that one that was exchanged is noticed."""

    jobs_database: SecretStr = Field(
        default_factory=lambda: SecretStr(str(platformdirs.user_data_path("triptych") / "jobs.sqlite3"))
    )
    """Where jobs are listed: the path of a SQLite file, by default `triptych/jobs.sqlite3` in the user's folder for data; or the
    address of a PostgreSQL database for any number of gateways, such as `postgresql://user:password@host/name`."""

    jobs_store: str = Field(default_factory=lambda: str(platformdirs.user_data_path("triptych") / "jobs"))
    """Where jobs keep requests, results and pictures: a folder, by default `triptych/jobs` in the user's folder for data, or an
    address such as `s3://bucket/prefix`, whose credentials are in the environment."""

    jobs_running: PositiveInt = 4
    """Jobs that this gateway works on at the same time."""

    jobs_waiting: PositiveInt = 1000
    """Jobs that may wait; one more is refused with 429."""

    jobs_lease_seconds: Annotated[float, Field(gt=0)] = 10.0
    """How long after the last word of a gateway its jobs are taken over by another, or by itself once it is back."""

    jobs_retention_seconds: Annotated[float, Field(gt=0)] = 86400.0
    """How long a job and its pictures are kept after its end."""

    @model_validator(mode="after")
    def _hold_one_request(self) -> GatewaySettings:
        largest = self.max_body_bytes + 4 * self.max_image_pixels  # a picture in three colours, and its mask
        if self.max_held_bytes < largest:
            raise ValueError(
                f"TRIPTYCH_MAX_HELD_BYTES must be at least {largest}: with TRIPTYCH_MAX_BODY_BYTES and TRIPTYCH_MAX_IMAGE_PIXELS "
                "as they are, one request may have as much"
            )
        return self

    def demanded_keys(self) -> tuple[Key, ...]:
        return self.api_keys

    @classmethod
    def token_variable(cls) -> str:
        return "TRIPTYCH_API_KEYS"

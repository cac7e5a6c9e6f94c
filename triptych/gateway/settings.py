"""What a gateway is told by its environment."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field, PositiveInt

from triptych.serving.settings import ServerSettings, Token, Tokens


class GatewaySettings(ServerSettings):
    """What the gateway is told on top of what every service is."""

    max_body_bytes: PositiveInt = 2**24
    """The largest request that is read, its pictures included."""

    max_image_pixels: PositiveInt = 2**24
    """The largest picture that is decoded, width times height."""

    api_keys: Tokens = ()
    """What callers send as `Authorization: Bearer`; several are separated by commas. None: everybody may call."""

    admin_token: Token | None = None
    """What `triptych swap` sends as `Authorization: Bearer`. None: stages are swapped from this machine alone, and only where
    there are no `api_keys`."""

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
    """What the stages demand, their `TRIPTYCH_TOKEN`."""

    model_name: str = ""
    """What callers name as `model`; by default the name that the diffusion stage gives itself."""

    swap_timeout_seconds: Annotated[float, Field(gt=0)] = 120.0
    """How long the picture of one step may take that a new stage makes before it is swapped in."""

    max_running_requests: PositiveInt = 32
    """Requests that the stages are given at the same time."""

    max_waiting_requests: Annotated[int, Field(ge=0)] = 128
    """Requests that may wait for their turn; one more is refused with 429."""

    stage_wait_seconds: Annotated[float, Field(ge=0)] = 60.0
    """How long a request waits, within its own deadline, for a stage that is gone, starting or being exchanged; 0 refuses it
    with 503 at once."""

    poll_seconds: Annotated[float, Field(gt=0)] = 2.0
    """How often the stages are asked who they are, so that one that was exchanged is noticed."""

    def demanded_tokens(self) -> tuple[str, ...]:
        return tuple(key.get_secret_value() for key in self.api_keys)

    @classmethod
    def token_variable(cls) -> str:
        return "TRIPTYCH_API_KEYS"

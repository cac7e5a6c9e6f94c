"""The stages' Protocols over a network. `open_inference.py` speaks to our own stage services and to anybody's who speak alike."""

from triptych.remote.client import make_client
from triptych.remote.open_inference import RemoteDecoder, RemoteDiffusion, RemoteImageEncoder, RemoteTextEncoder

__all__ = ["RemoteDecoder", "RemoteDiffusion", "RemoteImageEncoder", "RemoteTextEncoder", "make_client"]

"""The stages' Protocols over a network. `open_inference.py` speaks to our own stage services and to anybody's who speak alike;
`replicas.py` makes one stage of several that are alike."""

from triptych.remote.client import make_client
from triptych.remote.open_inference import RemoteDecoder, RemoteDiffusion, RemoteImageEncoder, RemoteTextEncoder
from triptych.remote.replicas import ReplicatedDecoder, ReplicatedDiffusion, ReplicatedImageEncoder, ReplicatedTextEncoder

__all__ = [
    "RemoteDecoder",
    "RemoteDiffusion",
    "RemoteImageEncoder",
    "RemoteTextEncoder",
    "ReplicatedDecoder",
    "ReplicatedDiffusion",
    "ReplicatedImageEncoder",
    "ReplicatedTextEncoder",
    "make_client",
]

"""The stages' Protocols over a network. `open_inference.py` speaks to our own stage services and to anybody's who speak alike;
`replicas.py`, `replicated.py` and `failover.py` make one stage of several that are alike, and lose nothing when one goes."""

from triptych.remote.client import make_client
from triptych.remote.failover import ReplicatedDiffusion
from triptych.remote.names import Names
from triptych.remote.open_inference import RemoteDecoder, RemoteDiffusion, RemoteImageEncoder, RemoteTextEncoder
from triptych.remote.replicas import Patience
from triptych.remote.replicated import ReplicatedDecoder, ReplicatedImageEncoder, ReplicatedTextEncoder

__all__ = [
    "Names",
    "Patience",
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

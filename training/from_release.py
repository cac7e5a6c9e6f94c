"""Training goes on from a released model where the cache is empty: on a fresh machine nothing has to begin at zero."""

from __future__ import annotations

from training.cache import cache_folder, report
from training.unet import RELEASED, save_shape
from training.unet import WEIGHTS as UNET_WEIGHTS
from triptych.checkpoints.checkpoint import Network, load_network
from triptych.checkpoints.registry import find_model

# Network to the stage that goes on with it, and the name its weights have there
_PLACES = {
    Network.VAE_ENCODER: ("vae", "encoder.weights.h5"),
    Network.VAE_DECODER: ("vae", "decoder.weights.h5"),
    Network.TEXT_ENCODER: ("text", "encoder.weights.h5"),
    Network.UNET: (RELEASED, UNET_WEIGHTS),
}


def start_from_release(name: str = "vignette") -> None:
    """Puts the networks of a release into the cache, as what `vae`, `text` and `unet` begin with. What is there already stays.

    A released autoencoder makes white latents. They stay nearly white while it learns on, and are whitened anew by a symmetric
    matrix, near the identity then: so what the U-Net knows of the channels keeps its meaning.

    Args:
        name: An embedded model or a folder.
    """
    model = find_model(name)
    tokenizer = cache_folder("tokenizer")
    if not (tokenizer / "vocab.json").exists():
        for path in sorted(model.tokenizer.iterdir()):
            (tokenizer / path.name).write_bytes(path.read_bytes())
        report("tokenizer", begins_with=name)
    for network, (stage, weights) in _PLACES.items():
        path = cache_folder(stage) / weights
        if path.exists() or (path.parent / "state.npz").exists():
            report(stage, keeps=weights)
            continue
        load_network(model, network).save_weights(path)
        if network is Network.UNET:
            save_shape(path.parent, model.unet)
        report(stage, begins_with=f"{network.value} of {name}")

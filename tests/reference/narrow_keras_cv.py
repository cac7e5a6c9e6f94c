"""keras-cv's networks, built narrower by its own code: the same layers in the same order, with a twentieth of the weights.

The numbers of channels stand in the bodies of keras-cv's constructors; here the layers that they name take fewer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any
from unittest import mock

from triptych.checkpoints.keras_cv import Preset

UNET_WIDTHS = {320: 64, 640: 128, 1280: 256}
VAE_WIDTHS = {128: 32, 256: 64, 512: 128}
TEXT_WIDTH, TEXT_HEADS = 64, 4
TEXT_WIDTHS = (768, 1024)


def narrow(preset: Preset) -> Preset:
    """The preset with the configurations of the narrow networks."""
    heads = preset.unet.attention_head_dim
    return replace(
        preset,
        text_encoder=replace(
            preset.text_encoder, hidden_size=TEXT_WIDTH, intermediate_size=4 * TEXT_WIDTH, num_attention_heads=TEXT_HEADS
        ),
        unet=replace(
            preset.unet,
            block_out_channels=(64, 128, 256, 256),
            cross_attention_dim=TEXT_WIDTH,
            attention_head_dim=heads if isinstance(heads, int) else tuple(each // 5 for each in heads),
        ),
        vae=replace(preset.vae, block_out_channels=(32, 64, 128, 128)),
    )


@contextmanager
def built_by_calling() -> Iterator[None]:
    """Keras finds shapes by calling layers on zeros.

    Its way on TensorFlow is to trace a graph, once to build a layer and once for its output, on every level of nested layers: it
    takes four times as long, however narrow the networks are.
    """
    import tensorflow as tf
    from keras.src import backend, tree
    from keras.src.backend.common.stateless_scope import StatelessScope
    from keras.src.backend.common.symbolic_scope import SymbolicScope
    from keras.src.layers import layer

    def to_zeros(value: Any) -> Any:
        if not isinstance(value, backend.KerasTensor):
            return value
        return tf.zeros([1 if size is None else size for size in value.shape], value.dtype)

    def to_symbol(value: Any) -> Any:
        return backend.KerasTensor((None, *value.shape[1:]), value.dtype) if tf.is_tensor(value) else value

    def of_any_size(value: Any) -> bool:
        return isinstance(value, backend.KerasTensor) and None in value.shape[1:]

    def compute_output_spec(function: Callable[..., Any], *inputs: Any, **options: Any) -> Any:
        if any(map(of_any_size, tree.flatten((inputs, options)))):
            return traced(function, *inputs, **options)
        inputs, options = tree.map_structure(to_zeros, (inputs, options))
        with StatelessScope(), SymbolicScope():
            return tree.map_structure(to_symbol, function(*inputs, **options))

    traced = backend.compute_output_spec
    with (
        mock.patch.object(backend, "compute_output_spec", compute_output_spec),
        mock.patch.object(layer, "might_have_unbuilt_state", return_value=False),  # the call builds what is inside
    ):
        yield


@contextmanager
def narrow_keras_cv() -> Iterator[None]:
    """keras-cv's constructors build narrow networks."""
    from keras_cv.src.backend import keras
    from keras_cv.src.models.stable_diffusion import decoder, diffusion_model, image_encoder, text_encoder

    def fewer(widths: dict[int, int], layer: Callable[..., Any]) -> Callable[..., Any]:
        return lambda width, *rest, **options: layer(widths.get(width, width), *rest, **options)

    def fewer_heads(num_heads: int, head_size: int, *, fully_connected: bool) -> Any:
        # 2.1 has more heads where it is wider, 1.4 larger ones
        sizes = (num_heads // 5, head_size) if fully_connected else (num_heads, head_size // 5)
        return spatial_transformer(*sizes, fully_connected=fully_connected)

    def shorter_input(shape: tuple[int | None, ...], **options: Any) -> Any:
        *rest, width = shape
        narrower = TEXT_WIDTH if width in TEXT_WIDTHS and rest else UNET_WIDTHS.get(width or 0, width)
        return input_layer((*rest, narrower), **options)

    def narrow_embedding(vocabulary: int, _: int, length: int) -> Any:
        return embedding(vocabulary, TEXT_WIDTH, length)

    def narrow_encoder_layer(_: int, __: int, **options: Any) -> Any:
        return encoder_layer(TEXT_WIDTH, TEXT_HEADS, **options)

    spatial_transformer, input_layer = diffusion_model.SpatialTransformer, keras.layers.Input
    embedding, encoder_layer = text_encoder.CLIPEmbedding, text_encoder.CLIPEncoderLayer
    replaced: list[tuple[Any, str, Callable[..., Any]]] = [
        (diffusion_model, "SpatialTransformer", fewer_heads),
        *((diffusion_model, name, fewer(UNET_WIDTHS, getattr(diffusion_model, name))) for name in ("ResBlock", "Upsample")),
        (diffusion_model, "PaddedConv2D", fewer(UNET_WIDTHS, diffusion_model.PaddedConv2D)),
        (keras.layers, "Dense", fewer({1280: 256}, keras.layers.Dense)),  # of the timestep; no other is as wide
        (keras.layers, "Input", shorter_input),
        (text_encoder, "CLIPEmbedding", narrow_embedding),
        (text_encoder, "CLIPEncoderLayer", narrow_encoder_layer),
        *(
            (module, name, fewer(VAE_WIDTHS, getattr(module, name)))
            for module in (decoder, image_encoder)
            for name in ("PaddedConv2D", "ResnetBlock", "AttentionBlock")
        ),
    ]
    with ExitStack() as stack:
        stack.enter_context(built_by_calling())
        for owner, name, layer in replaced:
            stack.enter_context(mock.patch.object(owner, name, layer))
        yield

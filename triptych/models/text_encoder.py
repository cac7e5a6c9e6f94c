"""CLIP's text encoder: a transformer that sees only backwards (Radford et al. 2021, arXiv:2103.00020)."""

from __future__ import annotations

import keras
from keras import layers, ops

from triptych.models.config import CLIPTextConfig
from triptych.models.layers import dense, layer_norm, multi_head_attention


def build_text_encoder(
    config: CLIPTextConfig, *, kernel_initializer="glorot_uniform", embeddings_initializer="random_normal"
) -> keras.Model:
    """The text encoder.

    Inputs: `tokens` (B, T) int32, T being `max_position_embeddings`.
    Outputs: `context` (B, T, D), of the last layer and normalized.
    """

    def project(x, name, units):
        return dense(x, name, units, kernel_initializer=kernel_initializer)

    def self_attention(x, name):
        query, key, value = (project(x, f"{name}.{part}_proj", config.hidden_size) for part in "qkv")
        x = multi_head_attention(query, key, value, config.num_attention_heads, is_causal=True)
        return project(x, f"{name}.out_proj", config.hidden_size)

    def feed_forward(x, name):
        x = ACTIVATIONS[config.hidden_act](project(x, f"{name}.fc1", config.intermediate_size))
        return project(x, f"{name}.fc2", config.hidden_size)

    def norm(x, name):
        return layer_norm(x, name, config.layer_norm_eps)

    tokens = keras.Input((config.max_position_embeddings,), dtype="int32", name="tokens")
    x = layers.Embedding(
        config.vocab_size, config.hidden_size, embeddings_initializer, name="text_model.embeddings.token_embedding"
    )(tokens)
    x = PositionEmbedding(embeddings_initializer, name="text_model.embeddings.position_embedding")(x)
    for i in range(config.num_hidden_layers):
        block = f"text_model.encoder.layers.{i}"
        x = x + self_attention(norm(x, f"{block}.layer_norm1"), f"{block}.self_attn")
        x = x + feed_forward(norm(x, f"{block}.layer_norm2"), f"{block}.mlp")
    context = norm(x, "text_model.final_layer_norm")
    return keras.Model({"tokens": tokens}, {"context": context}, name="text_encoder")


def quick_gelu(x):
    """OpenAI's sigmoid approximation of GELU, with which CLIP was trained."""
    return x * ops.sigmoid(1.702 * x)


ACTIVATIONS = {
    "quick_gelu": quick_gelu,
    "gelu": lambda x: ops.gelu(x, approximate=False),
    "gelu_pytorch_tanh": lambda x: ops.gelu(x, approximate=True),  # keras-cv's, for 2.1
}


class PositionEmbedding(layers.Layer):
    """Adds to each token (B, T, D) a learnt vector of its position."""

    def __init__(self, initializer, **kwargs):
        super().__init__(**kwargs)
        self.initializer = initializer

    def build(self, input_shape):
        self.embeddings = self.add_weight(shape=input_shape[1:], initializer=self.initializer, name="embeddings")

    def call(self, x):
        return x + self.embeddings

"""What somebody does who knows tritonclient and nothing of ours. Run by test_tritonclient.py, in an environment of its own.

Usage: triton_client.py TOKEN TEXT_ENCODER DIFFUSION DECODER    (addresses as host:port; prints what it saw as JSON)
"""

from __future__ import annotations

import hashlib
import json
import sys
from typing import Any

import numpy as np
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException


def tensor(name: str, array: np.ndarray, datatype: str, *, binary: bool = True) -> Any:
    made = triton.InferInput(name, list(array.shape), datatype)
    made.set_data_from_numpy(array, binary_data=binary)
    return made


def describe(array: np.ndarray) -> dict[str, Any]:
    return {"shape": list(array.shape), "dtype": array.dtype.name, "sha256": hashlib.sha256(array.tobytes()).hexdigest()}


def inspect(client: Any, model: str) -> dict[str, Any]:
    return {
        "live": client.is_server_live(),
        "ready": client.is_server_ready(),
        "model_ready": client.is_model_ready(model),
        "version_ready": client.is_model_ready(model, "1"),
        "other_ready": client.is_model_ready("other"),
        "server": client.get_server_metadata(),
        "metadata": client.get_model_metadata(model),
        "index": client.get_model_repository_index(),
    }


def refusal(function: Any) -> list[str]:
    try:
        function()
    except InferenceServerException as error:
        return [error.status(), error.message()]
    return ["", "was not refused"]


def use_text_encoder(client: Any) -> tuple[dict[str, Any], np.ndarray]:
    prompts = np.array(["ein roter Bär".encode(), b""], dtype=object)
    wanted = [triton.InferRequestedOutput("context", binary_data=False)]
    plain = client.infer("text_encoder", [tensor("prompt", prompts, "BYTES")], request_id="seven")
    as_json = client.infer("text_encoder", [tensor("prompt", prompts, "BYTES", binary=False)], outputs=wanted, model_version="1")
    long = np.array([b"word " * 80], dtype=object)
    cut = client.infer("text_encoder", [tensor("prompt", long, "BYTES")], parameters={"truncate": True})
    seen = {
        "id": plain.get_response()["id"],
        "context": describe(plain.as_numpy("context")),
        "context_as_json": describe(as_json.as_numpy("context")),
        "warnings": cut.get_response()["parameters"]["warnings"],
        "too_long": refusal(lambda: client.infer("text_encoder", [tensor("prompt", long, "BYTES")])),
    }
    return seen, plain.as_numpy("context")


def use_diffusion(client: Any, context: np.ndarray) -> tuple[dict[str, Any], np.ndarray]:
    inputs = [
        tensor("context", context[:1], "FP32"),
        tensor("unconditional_context", context[1:], "FP32"),
        tensor("seed", np.array([7, 2**64 - 1], np.uint64), "UINT64", binary=False),
    ]
    parameters = {"num_steps": 3, "guidance_scale": 5.5, "sampler": "euler", "width": 96, "height": 64}
    latents = client.infer("diffusion", inputs, parameters=parameters).as_numpy("latents")
    wrong = [tensor("context", context[:, :5], "FP32"), *inputs[1:]]
    return {
        "latents": describe(latents),
        "wrong_shape": refusal(lambda: client.infer("diffusion", wrong)),
        "wrong_name": refusal(lambda: client.infer("diffusion", [tensor("contexts", context, "FP32")])),
        "timeout": refusal(lambda: client.infer("diffusion", inputs, timeout=5)),
    }, latents


def use_decoder(client: Any, latents: np.ndarray) -> dict[str, Any]:
    texts = tensor("image_text", np.array([b"one", b"two"], dtype=object), "BYTES")
    pixels = client.infer("decoder", [tensor("latents", latents, "FP32")]).as_numpy("images")
    files = client.infer("decoder", [tensor("latents", latents, "FP32"), texts], parameters={"image_format": "png"})
    return {
        "images": describe(pixels),
        "files": [hashlib.sha256(file).hexdigest() for file in files.as_numpy("images")],
        "nan": refusal(lambda: client.infer("decoder", [tensor("latents", latents * np.float32("nan"), "FP32")])),
    }


def main() -> None:
    token, *addresses = sys.argv[1:]
    clients = dict(zip(("text_encoder", "diffusion", "decoder"), map(triton.InferenceServerClient, addresses), strict=True))
    locked = refusal(lambda: clients["decoder"].get_model_metadata("decoder"))
    for client in clients.values():
        # tritonclient's own way to send a header with everything.
        client.register_plugin(BearerToken(token))
    seen = {model: inspect(client, model) for model, client in clients.items()}
    encoded, context = use_text_encoder(clients["text_encoder"])
    denoised, latents = use_diffusion(clients["diffusion"], context)
    decoded = use_decoder(clients["decoder"], latents)
    results = {"locked": locked, "inspected": seen, "encoded": encoded, "denoised": denoised, "decoded": decoded}
    sys.stdout.write(json.dumps(results))


class BearerToken(triton.InferenceServerClientPlugin):  # type: ignore[misc]
    """Adds the token to each request."""

    def __init__(self, token: str) -> None:
        self._token = token

    def __call__(self, request: Any) -> None:
        request.headers["Authorization"] = f"Bearer {self._token}"


if __name__ == "__main__":
    main()

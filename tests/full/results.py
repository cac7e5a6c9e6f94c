"""What `make test-full` and `benchmarks.loading` measured, kept as JSON, and the page that shows it.

::

    python -m tests.full.results        writes docs/proof.md anew
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks.report import RESULTS, circumstances, markdown_table

PATH = RESULTS / "proof.json"
PAGE = Path(__file__).resolve().parents[2] / "docs" / "proof.md"
PACKAGES = ("triptych", "keras", "openvino", "numpy", "torch", "diffusers", "transformers", "safetensors")

Results = dict[str, dict[str, Any]]
Section = Iterator[str]

INTRODUCTION = """<!-- Written by `python -m tests.full.results` from benchmarks/results; do not edit. -->

# Proof

No checkpoint can be downloaded where this is developed. So what is proven is the arithmetic: networks in the configurations that
Stable Diffusion's publishers wrote, at full size, every weight random (those of norms and biases too), in files laid out as
theirs, against diffusers and transformers reading the same files. How the weights are drawn is told in
[benchmarks/random_checkpoint.py](../benchmarks/random_checkpoint.py): activations stay near one, and an exchanged weight shows.
`make test-full` runs it all; small configurations of every kind run with every `make test-reference`.

Timings are from a machine that other work kept busy: they bound from above, and compare only within a row.
"""


def record(section: str, name: str, measured: Mapping[str, Any]) -> None:
    """Keeps what was measured, in place of what was measured before under this name; with where and when."""
    document = read()
    told = {key: value for key, value in circumstances(PACKAGES).items() if key != "command"}
    document.setdefault(section, {})[name] = {**measured, **told}
    PATH.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


def read() -> Results:
    document: Results = json.loads(PATH.read_text(encoding="utf-8")) if PATH.exists() else {}
    return document


def page(results: Results, loading: Mapping[str, Any] | None) -> str:
    """docs/proof.md: a section for whatever was measured."""
    parts = [
        INTRODUCTION,
        *_networks(results),
        *_keras_cv(results),
        *_end_to_end(results),
        *_loading(loading),
        *_starts(results),
        *_serving(results),
    ]
    return "\n".join(parts)


def _networks(results: Results) -> Section:
    if rows := results.get("networks"):
        yield """## Networks

One forward pass in float32, ours as a stage runs it (OpenVINO). The error is that of the whole output, relative, in the Euclidean
norm; of the decoder, on both sides, that against the peer computing in float64. Memory is a process's resident peak, pages of
files included, which the system can drop.
"""
        header = ("network", "inputs", "weights on disk", "error", "bound", "peak GB ours / peer", "measured")
        yield markdown_table(header, [_network_row(name, each) for name, each in rows.items()]) + "\n"


def _network_row(name: str, each: Mapping[str, Any]) -> tuple[str, ...]:
    inputs = ", ".join(f"{key} {'x'.join(map(str, shape))}" for key, shape in each["inputs"].items() if len(shape) > 1)
    error, bound = f"{each['error']:.1e}", f"{each['bound']:.1e}"
    if "error_of_peer" in each:
        error, bound = f"{error}; peer {each['error_of_peer']:.1e}", f"{bound} (twice the peer's + 1e-5)"
    runs = each["runs"]
    peaks = f"{_gb(runs['ours']['peak_bytes'])} / {_gb(runs['theirs']['peak_bytes'])}"
    return name, inputs, each["dtype"], error, bound, peaks, each["date"]


def _keras_cv(results: Results) -> Section:
    rows = results.get("keras-cv", {})
    networks = {name: row for name, row in rows.items() if "error" in row}
    pictures = {name: row for name, row in rows.items() if "largest_difference" in row}
    if not networks:
        return
    yield """## keras-cv

Presets at full size, random weights, from keras-cv's `.h5` files through `triptych pull --from`: each network in float32, the
decoder of 512x512 against keras-cv's own in float64; and the picture of `generate_image`, 128x128, 3 steps, from the same noise,
by our three services over HTTP.

| what | error | bound | peak GB | measured |
| --- | ---: | ---: | ---: | ---: |"""
    for name, row in networks.items():
        yield f"| {name} | {row['error']:.1e} | {row['bound']:.1e} | {row['peak_bytes'] / 1e9:.2f} | {row['date']} |"
    for name, row in pictures.items():
        yield f"| {name} | {row['largest_difference']}/255 | {row['bound']}/255 | | {row['date']} |"
    yield ""


def _end_to_end(results: Results) -> Section:
    for name, each in results.get("end to end", {}).items():
        seconds = each["seconds"]
        yield f"""## End to end

{name}, float32 on both sides, the same noise, DDIM, 3 steps, guidance 7.5: our three services over HTTP against
`StableDiffusionPipeline`.
"""
        rows = [
            ("contexts, relative error", f"{each['context_error']:.1e}", ""),
            ("latents, relative error", f"{each['latents_error']:.1e}", f"{each['latents_bound']:.0e}"),
            ("pixels within 2/255", f"{each['pixels_within_2']:.4%}", f"{each['pixels_bound']:.1%}"),
            ("largest distance of a pixel, of 255", each["largest_pixel_distance"], ""),
            ("pixels that are 0 or 255 in the peer's picture", f"{each['pixels_clipped']:.1%}", ""),
            ("seconds, ours / diffusers", f"{seconds['ours']:.0f} / {seconds['theirs']:.0f}", ""),
        ]
        yield markdown_table(("what", "measured", "bound"), rows) + f"\n\n{_told(each)}\n"


def _loading(loading: Mapping[str, Any] | None) -> Section:
    if loading:
        rounds = len(loading["runs"]["ours"])
        yield f"""## Loading

The U-Net of 1.5 (859.5 M parameters, 3.44 GB in float32) from a safetensors file of float16 into a network of float32, against
diffusers' `from_pretrained`; medians of {rounds} runs each, in turn (`python -m benchmarks.loading`). The file is mapped
into memory, and each tensor is let go once it is placed. RssAnon is the process's own memory, RssFile pages of files, which the
system can drop. The bound for ours is 1.3 times the network. diffusers ran without `accelerate`, which it recommends.
"""
        header = ("side", "seconds", "peak RssAnon GB", "over the network", "peak RssFile GB")
        rows = [
            (
                side,
                f"{each['seconds']:.1f}",
                _gb(each["peak_anonymous_bytes"]),
                f"{each['anonymous_over_network']:.2f}",
                _gb(each["peak_file_bytes"]),
            )
            for side, each in loading["medians"].items()
        ]
        yield markdown_table(header, rows) + f"\n\n{_told(loading)}\n"


def _starts(results: Results) -> Section:
    if starts := results.get("cold starts"):
        yield """## Cold starts

A stage's whole start with nothing in the cache: weights loaded, network traced, written, compiled, and the search for batch sizes
that are exact; OpenVINO, float32. RssFile at its peak is mostly the weights that OpenVINO maps.
"""
        header = ("stage", "seconds", "peak RssAnon GB", "bound GB", "peak RssFile GB", "measured")
        yield markdown_table(header, [_start_row(name, each) for name, each in starts.items()]) + "\n"
    for name, each in results.get("cold starts", {}).items():
        if "limit_bytes" in each:
            charged = _gb(each["peak_charged_bytes"])
            yield f"""{name}: a control group without swap, {each["threads"]} threads on 2 cores. Charged to the group at the
most: {charged} GB, cached pages of files included, which the system drops at the limit.
"""


def _start_row(name: str, each: Mapping[str, Any]) -> tuple[str, ...]:
    bound = each.get("bound_bytes", each.get("limit_bytes"))
    peaks = _gb(each["peak_anonymous_bytes"]), _gb(bound), _gb(each["peak_file_bytes"])
    return name, f"{each['seconds']:.0f}", *peaks, each["date"]


def _serving(results: Results) -> Section:
    for name, each in results.get("serving", {}).items():
        seconds = {key.removesuffix("_seconds"): value for key, value in each["timings"].items()}
        total, encoded, denoised, decoded = (seconds[key] for key in ("total", "text_encoder", "diffusion", "decoder"))
        yield f"""## Serving

{name}: `POST /generate`, {each["num_steps"]} steps with guidance and a negative prompt, from the gateway and three stages
as processes of one machine. All ready after {each["start_seconds"]:.0f} s, compilations included; the picture took {total:.0f} s,
of which text encoder {encoded:.1f}, diffusion {denoised:.0f} ({denoised / each["num_steps"]:.1f} a step) and decoder
{decoded:.1f}. Memory while it was made:
"""
        header = ("process", "peak RssAnon GB", "peak RssFile GB")
        rows = [(key, _gb(memory["peak_anonymous_bytes"]), _gb(memory["file_bytes"])) for key, memory in each["memory"].items()]
        yield markdown_table(header, rows) + f"\n\n{_told(each)}\n"


def _gb(size: float) -> str:
    return f"{size / 1e9:.2f}"


def _told(each: Mapping[str, Any]) -> str:
    versions = ", ".join(f"{name} {number}" for name, number in each["versions"].items() if number)
    return f"{each['machine']} (load {each['load_before']} before), {each['date']}. Python {each['python']}, {versions}."


def main() -> None:
    """Writes the page."""
    path = RESULTS / "loading.json"
    loading = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
    PAGE.write_text(page(read(), loading), encoding="utf-8")


if __name__ == "__main__":
    main()

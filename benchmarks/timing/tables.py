"""A run's numbers as Markdown, and the table of it that stands in the README."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.report import describe, markdown_table
from benchmarks.timing.asking import NAMES
from benchmarks.timing.folders import RESULTS_FILE
from benchmarks.timing.peers import PEERS
from benchmarks.timing.plots import draw

Document = Mapping[str, Any]

MEANING = {
    "encode": "text encoder",
    "diffuse": "diffusion",
    "decode": "decoder",
    "transfer": "transfer",
    "gateway": "gateway",
    "http": "HTTP",
    "wall": "all",
}


def write_report(folder: Path, document: Document) -> None:
    """results.json, results.md and the plots; what was there of an earlier call is replaced."""
    content = json.dumps(document, indent=2) + "\n"
    (folder / "results.md").write_text(report(document), encoding="utf-8")
    draw(folder, document)
    # Last: a folder with this file is finished.
    (folder / RESULTS_FILE).write_text(content, encoding="utf-8")


def report(document: Document) -> str:
    """All tables."""
    makers = {
        "sequential": ("One request after the other", sequential_table),
        "open_loop": ("Under load", open_loop_table),
        "wire": ("The wire", wire_tables),
        "cold_start": ("Cold starts", cold_start_table),
        "service_times": ("Service times", service_times_table),
    }
    sections = [f"## {title}\n\n{make(document)}" for name, (title, make) in makers.items() if name in document]
    return "\n\n".join([f"# Should you split, and how?\n\n{_circumstances(document)}", *sections]) + "\n"


def label(subject: str) -> str:
    return PEERS[subject].label if subject in PEERS else subject


def _circumstances(document: Document) -> str:
    options, busy = document["options"], document["busy"]
    lines = [
        describe(document),
        f"Profile {options['profile']}: {options['model']}, {options['threads']} threads for each network of every scenario and "
        "peer, which replicas share.",
        f"Others took {busy['median_share_of_others']:.0%} of the machine at the median of {busy['units']} measured units and "
        f"{busy['largest_share_of_others']:.0%} at most; {len(busy['flagged_units'])} units are flagged, those with more than "
        f"{options['busy_share']:.0%}.",
    ]
    lines += [f"Not measured: {told['label']}: {told['unavailable']}." for told in _unavailable(document)]
    if "model" in document:
        lines.append(f"Weights: {', '.join(map(_weights, *zip(*document['model'].items(), strict=True)))}.")
        lines.append(f"Numerics: {'; '.join(map(_numerics, *zip(*document['model'].items(), strict=True)))}.")
    return "\n\n".join(lines)


def _unavailable(document: Document) -> list[Mapping[str, str]]:
    return [told for told in document.get("peers", {}).values() if "unavailable" in told]


def _weights(stage: str, told: Mapping[str, Any]) -> str:
    return f"{stage} {told['weights_digest'][:12]}"


def _numerics(stage: str, told: Mapping[str, Any]) -> str:
    numerics = told["numerics"]
    return f"{stage} {numerics['engine']} {numerics['version']} {numerics['precision']} {numerics['instruction_set']}"


# Sequential


def sequential_table(document: Document) -> str:
    """Medians of the parts, p10 and p90 of the whole, and how much more than the baseline's it is."""
    section, options = document["sequential"], document["options"]
    header = ("median s of", *(MEANING[name] for name in (*NAMES, "wall")), "p10 to p90", f"more than {section['baseline']}")
    rows = [
        (label(name), *_medians(subject), _range(subject["seconds"]["wall"]), _more(subject["more_than_baseline"]))
        for name, subject in _by_time(section["subjects"])
    ]
    lines = [
        f"{options['batch']} picture{'' if options['batch'] == 1 else 's'} of {options['width']}x{options['height']} a request, "
        f"{options['num_steps']} steps, "
        f"{options['rounds']} rounds, in turn{_fewer(options)}.{_less(options)} The last column is the median of the "
        "differences within the rounds, and where it lies with 95 % by resampling; where that includes 0, it is noise.",
        markdown_table(header, rows),
    ]
    silent = sorted({stage for subject in section["subjects"].values() for stage in subject["silent_stages"]})
    if silent:
        lines.append(f"Of {', '.join(silent)} the transfer is within the stage's own time: it does not tell how long it worked.")
    if any("extrapolated" in subject for subject in section["subjects"].values()):
        lines.append(_extrapolated(section["subjects"], options))
    return "\n\n".join(lines)


def _less(options: Mapping[str, Any]) -> str:
    """What the scenarios leave out of their pictures."""
    interval, start, end = (options.get(name) for name in ("cache_interval", "guidance_start", "guidance_end"))
    if (interval, start, end) in ((None, None, None), (1, 0.0, 1.0)):
        return ""
    guided = f"with guidance from {start:g} to {end:g} of the steps"
    return f" Ours reuse features at cache_interval {interval}, {guided}; peers do neither."


def _fewer(options: Mapping[str, Any]) -> str:
    fewer = options.get("fewer_rounds")
    return f"; the peers in the first {fewer} of them" if fewer and fewer < options["rounds"] and options["peers"] else ""


def _by_time(subjects: Mapping[str, Any]) -> list[tuple[str, Any]]:
    return sorted(subjects.items(), key=lambda item: float(item[1]["seconds"]["wall"]["median"]))


def _medians(subject: Mapping[str, Any]) -> list[str]:
    seconds = subject["seconds"]
    return [f"{seconds[name]['median']:.3f}" if name in seconds else "" for name in (*NAMES, "wall")]


def _range(spread: Mapping[str, float]) -> str:
    return f"{spread['p10']:.3f} to {spread['p90']:.3f}"


def _more(difference: Mapping[str, Any]) -> str:
    if difference["low"] == difference["high"] == 0:
        return ""
    noise = ", noise" if difference["is_noise"] else ""
    return f"{1000 * difference['median']:+.1f} ms ({1000 * difference['low']:+.1f} to {1000 * difference['high']:+.1f}{noise})"


def _extrapolated(subjects: Mapping[str, Any], options: Mapping[str, Any]) -> str:
    header = ("s a request", f"{options['num_steps']} steps, measured", f"{options['extrapolate_to']} steps, extrapolated")
    rows = [
        (label(name), f"{subject['seconds']['wall']['median']:.1f}", f"{subject['extrapolated']['wall_seconds']:.1f}")
        for name, subject in _by_time(subjects)
    ]
    words = "Extrapolated, not measured: each step more is taken to last as long as those that were measured."
    return f"{words}\n\n{markdown_table(header, rows)}"


# Under load


def open_loop_table(document: Document) -> str:
    options = document["options"]["load"]
    kinds = ", ".join(f"{kind['width']}x{kind['height']} with {kind['num_steps']} steps" for kind in options["kinds"])
    header = ("scenario", "offered/s", "made/s", "p50 s", "p95 s", "p99 s", "shed", "failed", "memory GB", "")
    rows = [row for name, curve in document["open_loop"].items() for row in _load_rows(name, curve)]
    words = f"Poisson arrivals of one picture each, equally likely {kinds}; {options['requests']} requests a load. "
    counted = "Latency is counted from when a request came."
    if not searches_knees(options):
        words += f"They come {options['first']:g} times as fast as they are made one after the other; no knee was searched. "
        return "\n\n".join([words + counted, markdown_table(header, rows)])
    words += (
        f"{options['flood_requests']} in a flood. {counted} The knee is the highest rate that was tried at which nobody was sent "
        f"away and p95 was at most {options['slow']:g} times what a request takes alone."
    )
    knees = [f"- {name}: {_knee(curve, options['flood_rate'])}" for name, curve in document["open_loop"].items()]
    return "\n\n".join([words, markdown_table(header, rows), "Knees, requests a second:", "\n".join(knees)])


def searches_knees(load: Mapping[str, Any]) -> bool:
    """Whether a plan's load is of several rates."""
    return bool(load["most"] > 1)


def _knee(curve: Mapping[str, Any], flood_rate: float) -> str:
    knee = f"{curve['knee_per_second']:g}" if curve["knee_per_second"] else "none of the rates that were tried"
    flood = curve["flood"]
    return f"{knee}; {flood['throughput']:.3g} made of {flood_rate:g} times as many" if flood else knee


def _load_rows(name: str, curve: Mapping[str, Any]) -> list[tuple[object, ...]]:
    floods = [(curve["flood"], "flood")] if curve["flood"] else []
    loads = [(load, "" if load["kept_up"] else "too much") for load in curve["loads"]]
    return [(name, *_load_cells(load), note) for load, note in (*loads, *floods)]


def _load_cells(load: Mapping[str, Any]) -> list[str]:
    quantiles = [load[f"p{percent}_seconds"] for percent in (50, 95, 99)]
    memory = sum(each["anonymous"] for each in load["memory_bytes"].values())
    seconds = [f"{value:.2f}" if value is not None else "" for value in quantiles]
    rates = [f"{load['offered_rate']:.3g}", f"{load['throughput']:.3g}"]
    return [*rates, *seconds, str(load["shed"]), str(load["failed"]), f"{memory / 1e9:.2f}"]


# The rest


def wire_tables(document: Document) -> str:
    wire = document["wire"]
    lines = []
    if "hops" in wire:
        header = ("one guided picture, 512x512", "arrays", "binary, bytes", "µs", "base64 in JSON, bytes", "µs")
        lines.append(markdown_table(header, [*map(_hop, wire["hops"]), _hop(_total(wire["hops"]))]))
    if "sockets" in wire:
        rows = [
            (each["stage"], each["wire_bytes"], each["tensor_bytes"], f"{each['wire_bytes'] / each['tensor_bytes']:.4f}")
            for each in wire["sockets"]
        ]
        lines.append(markdown_table(("counted on the sockets, both ways", "bytes", "bytes of arrays", "ratio"), rows))
    return "\n\n".join(lines)


def _hop(hop: Mapping[str, Any]) -> tuple[object, ...]:
    binary, base64 = f"{hop['binary_microseconds']:.0f}", f"{hop['base64_microseconds']:.0f}"
    return hop["hop"], hop["array_bytes"], hop["binary_bytes"], binary, hop["base64_bytes"], base64


def _total(hops: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {"hop": "all", **{name: sum(hop[name] for hop in hops) for name in hops[0] if name != "hop"}}


def cold_start_table(document: Document) -> str:
    header = ("seconds from process start", "ready, from nothing", "first picture", "ready, compiled", "first picture")
    rows = [
        (name, *(f"{start[what]:.1f}" for start in (told["nothing"], told["compiled"]) for what in _WHAT if what in start))
        for name, told in document["cold_start"].items()
    ]
    alone = {name: seconds for told in document["cold_start"].values() for name, seconds in told["alone"].items()}
    words = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in alone.items())
    return markdown_table(header, rows) + (f"\n\nEach process alone, from its compiled network: {words}." if words else "")


_WHAT = ("ready_seconds", "first_picture_seconds")


def service_times_table(document: Document) -> str:
    header = ("stage", "size", "rows", "median ms", "p10", "p90")
    rows = [
        (name, size, number, *(f"{1000 * spread[each]:.1f}" for each in ("median", "p10", "p90")))
        for name, stage in document["service_times"]["stages"].items()
        for size, calls in stage["seconds"].items()
        for number, spread in calls.items()
    ]
    return "Of one call; of diffusion, of one evaluation.\n\n" + markdown_table(header, rows)

"""Which media type to answer with: the Accept header (RFC 9110, section 12.5.1) against what can be produced."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class _Range:
    """One part of an Accept header: `image/png`, `image/*` or `*/*`, with its weight and its place."""

    type: str
    subtype: str
    weight: float
    place: int

    def matches(self, media_type: str) -> bool:
        type_, _, subtype = media_type.partition("/")
        return self.type in ("*", type_) and self.subtype in ("*", subtype)

    @property
    def specificity(self) -> int:
        return (self.type != "*") + (self.subtype != "*")


def choose_media_type(accept: str, offered: Sequence[str]) -> str | None:
    """The offered media type that the caller likes best, or None where the caller takes none of them.

    The most specific range that matches a type gives its weight. Among equal weights the more specific match wins, then the
    one named earlier, then the one offered earlier: `image/png, */*` means PNG, and `*/*` whatever is offered first.
    """
    ranges = list(_parse(accept))
    best: tuple[tuple[float, int, int], str] | None = None
    for media_type in offered:
        matching = [range_ for range_ in ranges if range_.matches(media_type)]
        if not matching:
            continue
        closest = max(matching, key=lambda range_: (range_.specificity, range_.weight))
        rank = (closest.weight, closest.specificity, -closest.place)
        if closest.weight > 0 and (best is None or rank > best[0]):
            best = (rank, media_type)
    return best[1] if best else None


def _parse(accept: str) -> Iterator[_Range]:
    """The ranges that can be understood; one with a broken weight or without a slash says nothing."""
    for place, part in enumerate(accept.split(",")):
        media_range, *parameters = (piece.strip().lower() for piece in part.split(";"))
        type_, slash, subtype = media_range.partition("/")
        weight = _weight(parameters)
        if slash and type_ and subtype and weight is not None:
            yield _Range(type=type_, subtype=subtype, weight=weight, place=place)


def _weight(parameters: Sequence[str]) -> float | None:
    """The value of `q`, 1 where it is absent, None where it is no number from 0 to 1."""
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name.strip() == "q":
            try:
                weight = float(value)
            except ValueError:
                return None
            return weight if 0 <= weight <= 1 else None
    return 1.0

"""Half of the VAE on pictures that are too large to be run whole: the upper levels in tiles, the rest whole.

Tiles overlap by all that a convolution sees, and of each only what knows all about it is used: there is nothing to blend. What
they cannot know, the moments of the whole picture by which its group norms normalize, is found in a few passes::

    thumbnail, corrected  ──▶  mean and scale of each norm  ──▶  all tiles  ──▶  picture, what they found  ──▶  correction

The correction makes up for all by which a thumbnail differs from the whole, as far as the norms before it were right; so the
error falls several times with each pass. The passes end when the picture hardly changes any more.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from triptych.checkpoints.checkpoint import Network, VAEPart
from triptych.contract import Float32
from triptych.engines import CompiledNetwork, RowSpec
from triptych.errors import StartError
from triptych.models.tiling import Tiling, tiling_of_decoder, tiling_of_encoder
from triptych.stages.networks import NetworkLoader

Arrays = Mapping[str, NDArray[Any]]
Float64 = NDArray[np.float64]

MOST_PASSES = 6
SETTLED = 0.04
"""Of the largest value, which is five of a picture's 255 levels: where two passes differ by less, the later one is much nearer
to the whole than that."""


@dataclass(frozen=True, kw_only=True)
class Span:
    """Where a tile lies along one axis, in features: it has `start` to `end`, and answers for `first` to `last`."""

    start: int
    end: int
    first: int
    last: int


def spans(side: int, largest: int, margin: int) -> tuple[Span, ...]:
    """The tiles of an axis: as few as can be, and of equal size.

    Args:
        side: Of the whole.
        largest: A tile may be; more than twice the margin.
        margin: Features at an end of a tile, where it is not an end of the whole, for which it cannot answer.
    """
    if side <= largest:
        return (Span(start=0, end=side, first=0, last=side),)
    number = math.ceil((side - 2 * margin) / (largest - 2 * margin))
    step = math.ceil((side - 2 * margin) / number)
    size = step + 2 * margin
    starts = [min(place * step, side - size) for place in range(number)]
    borders = [0, *(start + size - margin for start in starts[:-1]), side]
    return tuple(
        Span(start=start, end=start + size, first=first, last=last)
        for start, first, last in zip(starts, borders, borders[1:], strict=False)
    )


@dataclass(frozen=True, kw_only=True)
class Tile:
    """A part of a picture, in features."""

    rows: Span
    columns: Span

    def cut(self, array: Float32, scale: int) -> Float32:
        """What it has of an array (H, W, C) with `scale` elements of an edge for each feature."""
        return array[_scaled(self.rows.start, self.rows.end, scale), _scaled(self.columns.start, self.columns.end, scale)]

    def answers(self, array: Float32, scale: int) -> Float32:
        """That part of the tile's own array for which it answers."""
        rows, columns = self.rows, self.columns
        inner = _scaled(rows.first - rows.start, rows.last - rows.start, scale)
        return array[inner, _scaled(columns.first - columns.start, columns.last - columns.start, scale)]

    def place_of_answers(self, scale: int) -> tuple[slice, slice]:
        """Where that belongs in the whole."""
        return _scaled(self.rows.first, self.rows.last, scale), _scaled(self.columns.first, self.columns.last, scale)


def _scaled(start: int, end: int, scale: int) -> slice:
    return slice(start * scale, end * scale)


@dataclass(frozen=True, kw_only=True)
class Mosaic:
    """The tiles of pictures of one size.

    Attributes:
        tiling: Of the network.
        size: (height, width) of the whole in features.
        tiles: In the order in which they are run.
        stride: The thumbnail has each so manieth position.
    """

    tiling: Tiling
    size: tuple[int, int]
    tiles: tuple[Tile, ...]
    stride: int

    @classmethod
    def of(cls, width: int, height: int, tiling: Tiling, *, largest: int) -> Mosaic:
        """For pictures of so many pixels, by tiles of no more than `largest` pixels of an edge.

        Raises:
            StartError: So small a tile would know nothing all about.
        """
        if (least := (2 * tiling.margin + 1) * tiling.scale) > largest:
            raise StartError(f"tile_side: tiles of this model's VAE must have {least} pixels of an edge at least, not {largest}")
        size = height // tiling.scale, width // tiling.scale
        rows, columns = (spans(side, largest // tiling.scale, tiling.margin) for side in size)
        tiles = tuple(Tile(rows=row, columns=column) for row, column in product(rows, columns))
        return cls(tiling=tiling, size=size, tiles=tiles, stride=max(2, math.ceil(max(size) * tiling.scale / largest)))

    @property
    def tile_size(self) -> tuple[int, int]:
        """(height, width) of every tile in features."""
        rows, columns = self.tiles[0].rows, self.tiles[0].columns
        return rows.end - rows.start, columns.end - columns.start

    @property
    def tile_pixels(self) -> tuple[int, int]:
        """(width, height) of every tile in pixels."""
        height, width = (side * self.tiling.scale for side in self.tile_size)
        return width, height

    @property
    def shares(self) -> Float32:
        """For each tile 1 where it answers, else 0: (number of tiles, h, w, 1)."""
        shares = np.zeros((len(self.tiles), *self.tile_size, 1), np.float32)
        for tile, share in zip(self.tiles, shares, strict=True):
            tile.answers(share, 1)[...] = 1
        return shares

    @property
    def weight(self) -> float:
        """What the mean over a tile adds to the mean over the whole."""
        return math.prod(self.tile_size) / math.prod(self.size)


@dataclass(frozen=True, kw_only=True)
class Ends:
    """What goes into the upper levels and what comes out: names, and elements of an edge for each feature."""

    input: str
    input_scale: int
    input_channels: int
    output: str
    output_scale: int
    output_channels: int


class UpperLevels:
    """The upper levels of a half of the VAE, on one whole after the other.

    Args:
        tile, thumbnail: Compiled for a tile and for the thumbnail.
        epsilon: Of the group norms.

    Attributes:
        call_bytes: Memory that a call takes at the most, as long as it runs: its arrays, of wholes and of all tiles, but for the
            one that it is given; and a call of a network.
    """

    def __init__(self, tile: CompiledNetwork, thumbnail: CompiledNetwork, mosaic: Mosaic, ends: Ends, *, epsilon: float) -> None:
        self._tile, self._thumbnail = tile, thumbnail
        self._mosaic, self._ends, self._epsilon = mosaic, ends, epsilon
        self.call_bytes = _array_bytes(tile, thumbnail, mosaic, ends) + max(tile.call_bytes, thumbnail.call_bytes)

    def __call__(self, whole: Float32) -> Float32:
        """What the upper levels make of all of one picture, (H, W, C) to (H', W', C')."""
        stride = self._mosaic.stride
        small = np.ascontiguousarray(whole[None, ::stride, ::stride])
        tiles = np.stack([tile.cut(whole, self._ends.input_scale) for tile in self._mosaic.tiles])
        correction = _Moments.none(self._thumbnail.rows["told"].shape)
        before: Float32 | None = None
        for _ in range(MOST_PASSES):
            own = _Moments.of(self._thumbnail({self._ends.input: small, "told": correction.told})["found"][0])
            used = own.corrected(correction)
            output, found = self._pass(tiles, used)
            if before is not None and not np.abs(output - before).max() > SETTLED * np.abs(output).max():
                break
            before, correction = output, used.refined(found, self._epsilon).relative_to(own)
        return output

    def _pass(self, tiles: Float32, used: _Moments) -> tuple[Float32, Float64]:
        """The whole as the tiles have it, and what they found of its norms."""
        told = np.repeat(used.told, len(tiles), axis=0)
        outputs = self._tile({self._ends.input: tiles, "told": told, "share": self._mosaic.shares})
        found: Float64 = outputs["found"].sum(axis=0, dtype=np.float64) * self._mosaic.weight
        scale = self._ends.output_scale
        height, width = (side * scale for side in self._mosaic.size)
        whole = np.empty((height, width, outputs[self._ends.output].shape[-1]), np.float32)
        for tile, output in zip(self._mosaic.tiles, outputs[self._ends.output], strict=True):
            whole[tile.place_of_answers(scale)] = tile.answers(output, scale)
        return whole, found


def _array_bytes(tile: CompiledNetwork, thumbnail: CompiledNetwork, mosaic: Mosaic, ends: Ends) -> int:
    """See `UpperLevels.call_bytes`; follows `UpperLevels.__call__`."""
    tiles, largest = len(mosaic.tiles), tile.batch_sizes[-1]
    told = 4 * math.prod(tile.rows["told"].shape)
    tile_in = sum(4 * math.prod(row.shape) for row in tile.rows.values())
    tile_out, whole = (
        4 * math.prod(size) * ends.output_scale**2 * ends.output_channels for size in (mosaic.tile_size, mosaic.size)
    )
    padded = 2 * largest if largest > 1 else 0  # the last call's tiles, and those that are missing there
    inputs = (tiles + padded) * tile_in + 4 * math.prod(thumbnail.rows[ends.input].shape)
    found = tiles * (tile_out + told)
    # The whole of the pass before, beside: what calls gave and that joined; that and the whole of this pass; their difference.
    outputs = whole + max(2 * found + (largest - 1) * (tile_out + told), found + whole, 3 * whole)
    return inputs + outputs + 16 * told  # the last are moments in float64, a few at a time


@dataclass(frozen=True, eq=False)
class _Moments:
    """Of each group of each norm (N, G): its mean, and one over its standard deviation. Or what both are corrected by."""

    mean: Float64
    scale: Float64

    @classmethod
    def none(cls, shape: tuple[int, ...]) -> _Moments:
        """No correction, for `told` of that shape."""
        norms, _, groups = shape
        return cls(np.zeros((norms, groups)), np.ones((norms, groups)))

    @classmethod
    def of(cls, found: Float32) -> _Moments:
        return cls(found[:, 0].astype(np.float64), found[:, 1].astype(np.float64))

    @property
    def told(self) -> Float32:
        """As a network takes it, one row."""
        return np.stack([self.mean, self.scale], axis=1)[None].astype(np.float32)

    def corrected(self, by: _Moments) -> _Moments:
        return _Moments(self.mean + by.mean, self.scale * by.scale)

    def relative_to(self, other: _Moments) -> _Moments:
        """What the other must be corrected by to be this."""
        return _Moments(self.mean - other.mean, self.scale / other.scale)

    def refined(self, found: Float64, epsilon: float) -> _Moments:
        """The moments of what has the means and mean squares `found` (N, 2, G) once it is normalized by these."""
        mean, square = found[:, 0], found[:, 1]
        variance = np.maximum(square - np.square(mean), 0)
        return _Moments(self.mean + mean / self.scale, self.scale / np.sqrt(variance + epsilon * np.square(self.scale)))


class TiledDecoder:
    """See `build_vae_decoder`: what a compiled decoder is for small pictures.

    Attributes:
        tile_size: (width, height) of a tile in pixels.
        call_bytes: Memory that one picture takes as long as it is decoded, at the most.
    """

    def __init__(self, networks: NetworkLoader, width: int, height: int, *, largest: int) -> None:
        config = networks.files.vae
        tiling = tiling_of_decoder(config)
        mosaic = Mosaic.of(width, height, tiling, largest=largest)
        ends = Ends(
            input="features",
            input_scale=1,
            input_channels=tiling.channels,
            output="images",
            output_scale=tiling.scale,
            output_channels=config.out_channels,
        )
        latents = height // config.downsampling, width // config.downsampling, config.latent_channels
        self.tile_size = mosaic.tile_pixels
        self._trunk = networks.load(Network.VAE_DECODER, {"latents": RowSpec(shape=latents)}, part=VAEPart.TRUNK, one_row=True)
        self._upper = _load_upper(networks, Network.VAE_DECODER, mosaic, ends)
        features = 4 * math.prod(mosaic.size) * tiling.channels  # that the trunk hands on
        self.call_bytes = features + max(self._upper.call_bytes, self._trunk.call_bytes)

    def __call__(self, inputs: Arrays) -> dict[str, NDArray[Any]]:
        return {"images": np.stack([self._decode(row) for row in inputs["latents"]])}

    def _decode(self, latents: Float32) -> Float32:
        return self._upper(self._trunk({"latents": latents[None]})["features"][0])


class TiledEncoder:
    """See `build_vae_encoder`: what a compiled encoder is for small pictures. Attributes as of `TiledDecoder`."""

    def __init__(self, networks: NetworkLoader, width: int, height: int, *, largest: int) -> None:
        config = networks.files.vae
        tiling = tiling_of_encoder(config)
        mosaic = Mosaic.of(width, height, tiling, largest=largest)
        ends = Ends(
            input="images",
            input_scale=tiling.scale,
            input_channels=config.in_channels,
            output="features",
            output_scale=1,
            output_channels=tiling.channels,
        )
        features = {"features": RowSpec(shape=(*mosaic.size, tiling.channels))}
        self.tile_size = mosaic.tile_pixels
        self._upper = _load_upper(networks, Network.VAE_ENCODER, mosaic, ends)
        self._trunk = networks.load(Network.VAE_ENCODER, features, part=VAEPart.TRUNK, one_row=True)
        handed_on = 4 * math.prod(mosaic.size) * tiling.channels
        self.call_bytes = max(self._upper.call_bytes, handed_on + self._trunk.call_bytes)

    def __call__(self, inputs: Arrays) -> dict[str, NDArray[Any]]:
        outputs = [self._encode(row) for row in inputs["images"]]
        return {name: np.concatenate([output[name] for output in outputs]) for name in outputs[0]}

    def _encode(self, images: Float32) -> dict[str, NDArray[Any]]:
        return self._trunk({"features": self._upper(images)[None]})


def _load_upper(networks: NetworkLoader, network: Network, mosaic: Mosaic, ends: Ends) -> UpperLevels:
    """The upper levels of a network, compiled for the mosaic."""
    config = networks.files.vae
    told = RowSpec(shape=(mosaic.tiling.num_norms, 2, config.norm_num_groups))
    whole, tile = (tuple(side * ends.input_scale for side in size) for size in (mosaic.size, mosaic.tile_size))
    small = tuple(len(range(0, side, mosaic.stride)) for side in whole)
    of_tile = {
        ends.input: RowSpec(shape=(*tile, ends.input_channels)),
        "share": RowSpec(shape=(*mosaic.tile_size, 1)),
        "told": told,
    }
    of_thumbnail = {ends.input: RowSpec(shape=(*small, ends.input_channels)), "told": told}
    return UpperLevels(
        networks.load(network, of_tile, part=VAEPart.TILE),
        networks.load(network, of_thumbnail, part=VAEPart.THUMBNAIL, one_row=True),
        mosaic,
        ends,
        epsilon=config.norm_eps,
    )

"""From what a user calls a model to its checkpoint."""

from __future__ import annotations

import difflib
import logging
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import platformdirs

from triptych.checkpoints.checkpoint import Checkpoint, ModelFacts, Network
from triptych.checkpoints.diffusers_folder import DiffusersFolder
from triptych.checkpoints.entries import (
    PACKAGE_FILE,
    REVISION,
    ModelEntry,
    SourceKind,
    hub_source,
    local_source,
    read_entries,
    read_file,
)
from triptych.checkpoints.single_file import SingleFile, SingleFileOptions
from triptych.checkpoints.weights import Tensors
from triptych.errors import CheckpointError
from triptych.models.config import CLIPTextConfig, NetworkConfig, UNetConfig, VAEConfig
from triptych.sampling.samplers import replaced_sampler

_PACKAGE = Path(__file__).parents[1]
EMBEDDED = {"vignette": _PACKAGE / "vignette", "vignette-inpainting": _PACKAGE / "vignette" / "inpainting"}

OnProgress = Callable[[int, int], None]
"""Is told how many bytes are there, and of how many in all."""

VOCABULARY_OF = "sd-v1-5"
"""The model whose vocabulary single files are given, unless their entry names another."""

HALF_PRECISION = "fp16"
"""The variant that is taken too, where it is in the cache and nobody asked for one: it was pulled to be used."""

LOG_SECONDS = 10.0
"""Between two lines about a download that a service waits for."""

_log = logging.getLogger(__name__)


def find_model(name: str, *, models_file: Path | None = None, models_folder: Path | None = None) -> Checkpoint:
    """The model of that name, of that path, or of that id on the Hub (`owner/name`, or `owner/name@revision`).

    Nothing is read or downloaded before it is asked for.

    Args:
        models_file: The user's own models.toml.
        models_folder: Where models lie that were written on this machine, keras-cv's presets among them.

    Raises:
        CheckpointError: There is no such model; or a file of names cannot be read.
    """
    return Registry.read(models_file, models_folder).find(name)


def default_models_folder() -> Path:
    return platformdirs.user_data_path("triptych") / "models"


@dataclass(frozen=True, kw_only=True)
class Registry:
    """All models by name.

    Attributes:
        models_folder: Where models lie that were written on this machine.
    """

    entries: Mapping[str, ModelEntry]
    models_folder: Path

    @classmethod
    def read(cls, models_file: Path | None = None, models_folder: Path | None = None) -> Registry:
        return cls(entries=read_entries(models_file), models_folder=models_folder or default_models_folder())

    def find(self, name: str) -> NamedModel:
        """See `find_model`."""
        return self.model(self.entry(name))

    def model(self, entry: ModelEntry) -> NamedModel:
        return NamedModel(entry, self)

    def lender_of_vocabularies(self) -> NamedModel:
        """The package's own entry: under that name the user may have a single file, which has none itself."""
        return self.model(read_file(PACKAGE_FILE)[VOCABULARY_OF])

    def entry(self, name: str) -> ModelEntry:
        """What is known of a model, wherever it is.

        A name goes before a path, and a path before the Hub; an id of the Hub that an entry has is that entry.

        Raises:
            CheckpointError: There is no such model; the nearest names are told.
        """
        if name in self.entries:
            return self.entries[name]
        if name and (source := local_source(Path(name))):
            return ModelEntry(name=name, source=source, anonymous=True)
        base, at, revision = name.partition("@")
        if entry := self._registered(base):
            if at and not (entry.hub_ids and REVISION.fullmatch(revision)):
                raise CheckpointError(f"{base} has no revision {revision!r}: that is a branch, a tag or a commit on the Hub")
            return replace(entry, revision=revision) if at else entry
        if (source := hub_source(base)) and (not at or REVISION.fullmatch(revision)):
            return ModelEntry(name=base, source=source, revision=revision or None)
        raise CheckpointError(self._unknown(name))

    def _registered(self, base: str) -> ModelEntry | None:
        if base in self.entries:
            return self.entries[base]
        return next(
            (entry for entry in self.entries.values() if entry.source.kind is SourceKind.HUB and base in entry.hub_ids), None
        )

    def _unknown(self, name: str) -> str:
        if name in read_file(PACKAGE_FILE):
            return f"{name} has not been released: its weights are not in this package"
        nearest = difflib.get_close_matches(name, self.entries, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(nearest)}?" if nearest else "`triptych models list` names those there are"
        return f"there is no model {name!r}, neither by that name nor at that path, and it is no owner/name on the Hub: {hint}"


class NamedModel:
    """See `Checkpoint`: a model with what the registry knows of it over what it says of itself.

    Each part is fetched when it is first asked for, so that a stage fetches no more than its own.
    """

    def __init__(self, entry: ModelEntry, registry: Registry) -> None:
        self.entry = entry
        self._registry = registry
        self._on_progress: OnProgress = _LoggedProgress(entry)
        self._fetched: dict[frozenset[Network], Path] = {}
        self._opened: dict[Path, Checkpoint] = {}
        self._lent: SingleFile | None = None

    @property
    def keras_cv_folder(self) -> Path:
        """Where a preset of keras-cv is, once it was pulled."""
        return self._registry.models_folder / "keras-cv" / self.entry.source.location

    def fetch(self, networks: Collection[Network] = (), *, on_progress: OnProgress | None = None) -> Path:
        """Where the model is, with at least these networks of it on this machine.

        Args:
            on_progress: Else the log says how far a download is.

        Raises:
            CheckpointError: They cannot be had.
        """
        entry = self.entry
        match entry.source.kind:
            case SourceKind.HUB | SourceKind.HUB_FILE:
                return self._cached(networks) or self._download(networks, on_progress or self._on_progress)
            case SourceKind.KERAS_CV:
                if not self.keras_cv_folder.is_dir():
                    raise CheckpointError(
                        f"{entry.name} is not on this machine: where the extra keras-cv is installed, "
                        f"`triptych pull {entry.name}` has keras-cv download it, and writes it to {self.keras_cv_folder}"
                    )
                return self.keras_cv_folder
        if entry.source.is_gone:
            raise CheckpointError(f"there is no {entry.source.path}, where {entry.name} is said to be")
        return entry.source.path

    def convert(self, networks: Collection[Network], *, source: Path | None = None) -> Path:
        """Has keras-cv download a preset of its own, and writes it as a folder; once. See `keras_cv.pull_keras_cv`."""
        from triptych.checkpoints.keras_cv import pull_keras_cv

        parts = {network.subfolder for network in networks}
        return pull_keras_cv(f"keras-cv/{self.entry.source.location}", self.keras_cv_folder, parts=parts, source=source)

    def is_here(self, networks: Collection[Network]) -> bool:
        """Whether nothing need be downloaded for these networks."""
        here = self._cached(networks) is not None if self.entry.hub_ids else self._opens(networks)
        return here and (Network.TEXT_ENCODER not in networks or self._vocabulary_is_here())

    def _opens(self, networks: Collection[Network]) -> bool:
        try:
            for network in networks:
                with self.tensors(network):
                    pass
        except CheckpointError:
            return False
        return True

    def _vocabulary_is_here(self) -> bool:
        is_file = self.entry.source.kind in (SourceKind.FILE, SourceKind.HUB_FILE)
        return not is_file or self.entry.tokenizer is not None or self._registry.lender_of_vocabularies().is_here(())

    def _cached(self, networks: Collection[Network]) -> Path | None:
        """Where the Hub's cache has it, from whichever of its places it came."""
        for repo in self.entry.hub_ids:
            if path := self._in_cache(repo, networks):
                return path
        return None

    def _in_cache(self, repo: str, networks: Collection[Network]) -> Path | None:
        from triptych.checkpoints import hub

        entry = self.entry
        if entry.source.kind is SourceKind.HUB_FILE:
            return hub.file_in_cache(repo, entry.source.file, revision=entry.revision)
        found = (
            hub.folder_in_cache(repo, networks, revision=entry.revision, variant=variant)
            for variant in ((None, HALF_PRECISION) if entry.variant is None else (entry.variant,))
        )
        return next((path for path in found if path), None)

    def _download(self, networks: Collection[Network], on_progress: OnProgress) -> Path:
        from triptych.checkpoints import hub

        refusals = []
        for repo in sorted(self.entry.hub_ids, key=lambda repo: self._in_cache(repo, ()) is None):  # all parts from one place
            try:
                return self._from_hub(repo, networks, on_progress)
            except hub.NotOnTheHub as error:
                refusals.append(error.message)
        if self.entry.name == self.entry.source.location:  # it may have been meant as a path
            refusals.insert(0, "it is no path here")
        raise CheckpointError(f"{self.entry.name} cannot be had: {'; '.join(refusals)}")

    def _from_hub(self, repo: str, networks: Collection[Network], on_progress: OnProgress) -> Path:
        from triptych.checkpoints import hub

        entry = self.entry
        if entry.source.kind is SourceKind.HUB_FILE:
            return hub.fetch_file_from_hub(repo, entry.source.file, revision=entry.revision, on_progress=on_progress)
        return hub.fetch_from_hub(repo, networks, revision=entry.revision, variant=entry.variant, on_progress=on_progress)

    def _checkpoint(self, networks: Collection[Network] = ()) -> Checkpoint:
        needed = frozenset(networks)
        if needed not in self._fetched:
            self._fetched[needed] = self.fetch(networks)
        path = self._fetched[needed]
        if path not in self._opened:
            self._opened[path] = self._single_file(path) if path.is_file() else self._folder(path)
        return self._opened[path]

    def _folder(self, path: Path) -> Checkpoint:
        if not (path / "unet").exists() and any(path.glob("*.h5")):
            raise CheckpointError(
                f"{path} holds keras-cv's own files: `triptych pull keras-cv/sd-v1-4 --from {path}` makes a model of them, "
                "or keras-cv/sd-v2-1 does"
            )
        return DiffusersFolder(path, name=None if self.entry.anonymous else self.entry.name, variant=self.entry.variant)

    def _single_file(self, path: Path) -> SingleFile:
        return SingleFile(path, SingleFileOptions(prediction_type=self.entry.prediction_type, facts=self._known_facts()))

    def _known_facts(self) -> dict[str, Any]:
        entry = self.entry
        known = {
            "model": None if entry.anonymous else entry.name,
            "sizes": None if entry.size is None else (entry.size,),
            "sampler": entry.sampler,
            "num_steps": entry.num_steps,
            "guidance_scale": entry.guidance_scale,
            **entry.spaces,
        }
        return {name: value for name, value in known.items() if value is not None}

    @cached_property
    def facts(self) -> ModelFacts:
        told, known = self._checkpoint().facts, self._known_facts()
        if told.warnings and known.get("sampler", told.sampler) != told.sampler:
            _, about_its_own_sampler = replaced_sampler(self.scheduler)
            known["warnings"] = tuple(warning for warning in told.warnings if warning != about_its_own_sampler)
        return replace(told, **known)

    @cached_property
    def text_encoder(self) -> CLIPTextConfig:
        return self._checkpoint().text_encoder

    @cached_property
    def unet(self) -> UNetConfig:
        return self._checkpoint().unet

    @cached_property
    def vae(self) -> VAEConfig:
        return self._checkpoint().vae

    @cached_property
    def scheduler(self) -> Mapping[str, Any]:
        known = {} if self.entry.prediction_type is None else {"prediction_type": self.entry.prediction_type}
        return {**self._checkpoint().scheduler, **known}

    @cached_property
    def tokenizer(self) -> Path:
        checkpoint = self._checkpoint()
        if not isinstance(checkpoint, SingleFile):
            return self.entry.tokenizer or checkpoint.tokenizer
        vocabulary = self.entry.tokenizer or self._shared_vocabulary()
        self._lent = SingleFile(checkpoint.path, replace(checkpoint.options, tokenizer=vocabulary))  # its folder lives as long
        return self._lent.tokenizer

    def _shared_vocabulary(self) -> Path:
        """All models of Stable Diffusion 1.x and 2.x have one, and single files leave it out."""
        try:
            return self._registry.lender_of_vocabularies().tokenizer
        except CheckpointError as error:
            raise CheckpointError(
                f"{self.entry.name} is a single file, which has no vocabulary of its own (`triptych models add` takes "
                f"a --tokenizer), and {error.message}"
            ) from error

    @property
    def tiny_vae(self) -> Path | None:
        return self._checkpoint().tiny_vae

    def config(self, network: Network) -> NetworkConfig:
        return self._checkpoint().config(network)

    def tensors(self, network: Network) -> AbstractContextManager[Tensors]:
        return self._checkpoint((network,)).tensors(network)

    def weights_digest(self, network: Network) -> str:
        return self._checkpoint((network,)).weights_digest(network)


class _LoggedProgress:
    """Says in the log how far a download is, for a service has nothing else to say it with."""

    def __init__(self, entry: ModelEntry) -> None:
        self._entry = entry
        self._said_at = -LOG_SECONDS

    def __call__(self, done: int, total: int) -> None:
        if self._said_at < 0 and self._entry.licence:
            _log.info("%s is under the licence %s: %s", self._entry.name, self._entry.licence, self._entry.licence_url or "")
        if done == total or time.monotonic() - self._said_at >= LOG_SECONDS:
            self._said_at = time.monotonic()
            _log.info("%s: %.0f of %.0f MB are here", self._entry.name, done / 1e6, total / 1e6)

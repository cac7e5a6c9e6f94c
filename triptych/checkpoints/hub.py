"""Models of the Hub: of their files those that a stage needs, in huggingface_hub's own cache.

huggingface_hub talks to the Hub and keeps the cache (HF_HOME, HF_ENDPOINT, HF_TOKEN and HF_HUB_OFFLINE are its). What it lacks is
here: the disk is asked before anything is downloaded; a large file that was cut goes on where it ended, also in another process;
and what came is compared with the sha256 that the Hub states. Importing this module does not import it.
"""

from __future__ import annotations

import errno
import glob
import hashlib
import io
import logging
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from triptych.checkpoints.checkpoint import Network
from triptych.checkpoints.diffusers_folder import HALF_PRECISION, pickle_sentence, pickles_among, weights_file
from triptych.checkpoints.weights import first_names, read_index
from triptych.errors import CheckpointError

OnProgress = Callable[[int, int], None]
"""Is told how many bytes of the weights are here, and of how many in all."""

_log = logging.getLogger(__name__)


class NotOnTheHub(CheckpointError):
    """The Hub has no such model, or does not show it to us."""


def fetch_from_hub(
    repo_id: str,
    networks: Collection[Network] = tuple(Network),
    *,
    revision: str | None = None,
    variant: str | None = None,
    offline: bool = False,
    on_progress: OnProgress | None = None,
) -> Path:
    """A model's folder in the cache, with at least its descriptions and these networks.

    Args:
        repo_id: `owner/name`.
        networks: Whose weights are needed.
        revision: A branch, a tag or a commit; None is the main branch.
        variant: Of the weights, such as `fp16`. None is the plain one where all networks have it, else the one that all have.
        offline: Ask nobody, as under HF_HUB_OFFLINE.
        on_progress: Is told of the weights alone.

    Raises:
        NotOnTheHub: There is no such model.
        CheckpointError: It cannot be had: no network, no such revision, not in the layout of diffusers, pickles alone, a disk too
            full, a licence that was not accepted; or offline, and it is not in the cache.
    """
    snapshot = _Snapshot.find(repo_id, revision, offline=offline)
    if not any(name.startswith(("unet/", "vae/", "text_encoder/")) for name in snapshot.files):
        raise CheckpointError(_not_a_folder(snapshot))
    snapshot.fetch([name for name in snapshot.files if _is_description(name)])
    snapshot.fetch(_weights(snapshot, networks, variant), on_progress)
    return snapshot.folder


def fetch_file_from_hub(
    repo_id: str,
    file: str,
    *,
    revision: str | None = None,
    offline: bool = False,
    on_progress: OnProgress | None = None,
) -> Path:
    """One file of a repository, in the cache.

    Raises:
        NotOnTheHub, CheckpointError: As `fetch_from_hub`; or there is no such file.
    """
    if pickles_among([file]):
        raise CheckpointError(pickle_sentence(f"{file} of {repo_id}"))
    snapshot = _Snapshot.find(repo_id, revision, offline=offline)
    if file not in snapshot.files:
        raise CheckpointError(f"{snapshot} has no {file}; it has {first_names(snapshot.files)}")
    snapshot.fetch([file], on_progress)
    return snapshot.folder / file


def folder_in_cache(
    repo_id: str, networks: Collection[Network] = tuple(Network), *, revision: str | None = None, variant: str | None = None
) -> Path | None:
    """What `fetch_from_hub` would return, where nothing need be asked or downloaded for it."""
    try:
        return fetch_from_hub(repo_id, networks, revision=revision, variant=variant, offline=True)
    except CheckpointError:
        return None


def file_in_cache(repo_id: str, file: str, *, revision: str | None = None) -> Path | None:
    """What `fetch_file_from_hub` would return, where nothing need be asked or downloaded for it."""
    try:
        return fetch_file_from_hub(repo_id, file, revision=revision, offline=True)
    except CheckpointError:
        return None


# Which files


def _is_description(name: str) -> bool:
    folder, _, file = name.rpartition("/")
    match folder:
        case "":
            return file in ("model_index.json", "triptych.json")
        case "scheduler" | "unet" | "vae" | "text_encoder":
            return file in ("config.json", "scheduler_config.json")
        case "tokenizer":
            return file.endswith((".json", ".txt"))
    return False


def _weights(snapshot: _Snapshot, networks: Collection[Network], variant: str | None) -> list[str]:
    """The names of the files that hold the networks' weights. Their indices are fetched for it."""
    chosen = variant or _common_variant(snapshot.files)
    names: dict[str, None] = {}
    for network in networks:
        names |= dict.fromkeys(_weights_of(snapshot, network, chosen))
    return list(names)


def _weights_of(snapshot: _Snapshot, network: Network, variant: str | None) -> list[str]:
    folder = network.subfolder
    there = _names_in(snapshot.files, folder)
    if (name := weights_file(network, there, variant)) is None:
        if pickles := pickles_among(there):
            raise CheckpointError(pickle_sentence(f"{folder}/{pickles[0]} of {snapshot}"))
        what = f"{variant} weights" if variant else "weights"
        raise CheckpointError(f"{snapshot} has no {what} in {folder}; it has {first_names(there) or 'no such folder'}")
    if not name.endswith(".json"):
        return [f"{folder}/{name}"]
    snapshot.fetch([f"{folder}/{name}"])
    shards = [f"{folder}/{path.name}" for path in read_index(snapshot.folder / folder / name)]
    if missing := set(shards) - snapshot.files.keys():
        raise CheckpointError(f"{snapshot} lacks {first_names(missing)}, which {folder}/{name} lists")
    return [f"{folder}/{name}", *shards]


def _common_variant(files: Collection[str]) -> str | None:
    """Half precision where all networks have that and not all have the plain one, whichever of them are asked for: stages that
    fetch one network each must not choose differently."""
    there = {network: _names_in(files, network.subfolder) for network in Network}
    plain = all((name := weights_file(network, names)) and f".{HALF_PRECISION}." not in name for network, names in there.items())
    half = all(weights_file(network, names, HALF_PRECISION) for network, names in there.items())
    return HALF_PRECISION if half and not plain else None


def _names_in(files: Collection[str], folder: str) -> set[str]:
    return {name.removeprefix(f"{folder}/") for name in files if name.startswith(f"{folder}/")}


def _not_a_folder(snapshot: _Snapshot) -> str:
    files = [name for name in snapshot.files if name.endswith(".safetensors")]
    if files:
        return (
            f"{snapshot} is no model in the layout of diffusers, but holds {first_names(files)}: download one and name its path"
        )
    if pickles := pickles_among(snapshot.files):
        return pickle_sentence(f"{pickles[0]} of {snapshot}")
    return f"{snapshot} is no model in the layout of diffusers: it has neither unet, vae nor text_encoder"


# From there to here


@dataclass(frozen=True)
class _File:
    """What the Hub says of a file; `sha256` where it is large."""

    size: int
    sha256: str | None

    @classmethod
    def of(cls, told: Any) -> _File:
        return cls(told.size or 0, told.lfs.sha256 if told.lfs else None)


@dataclass(frozen=True)
class _Snapshot:
    """A repository at one commit.

    Attributes:
        revision: huggingface_hub's, which knows the commit.
        files: By name.
        offline: Why nothing can be fetched, or None.
    """

    repo_id: str
    revision: Any
    files: Mapping[str, _File]
    offline: str | None = None

    def __str__(self) -> str:
        return f"{self.repo_id}@{self.revision}"

    @classmethod
    def find(cls, repo_id: str, revision: str | None, *, offline: bool) -> _Snapshot:
        """The repository, from the Hub, or from the cache where the Hub is not to be asked or cannot be reached."""
        with _in_one_sentence(repo_id, revision):
            import httpx2
            from huggingface_hub import HfApi, constants, get_cached_repo_tree
            from huggingface_hub.errors import CachedRepoTreeNotFoundError, HfHubHTTPError

            api, reason = HfApi(library_name="triptych"), "offline"
            can_ask_later = offline and not constants.is_offline_mode()
            offline = offline or constants.is_offline_mode()
            resolved = api.resolve_revision(repo_id, revision=revision, local_files_only=offline)
            if not offline:
                try:
                    info = api.model_info(repo_id, revision=resolved.resolved, files_metadata=True)
                    return cls(repo_id, resolved, {each.rfilename: _File.of(each) for each in info.siblings or ()})
                except (httpx2.TransportError, HfHubHTTPError) as error:
                    if isinstance(error, HfHubHTTPError) and error.response.status_code < 500:
                        raise
                    reason = f"{constants.ENDPOINT} cannot be reached ({error})"
            try:
                files = {each.path: _File.of(each) for each in get_cached_repo_tree(repo_id, revision=resolved)}
            except CachedRepoTreeNotFoundError:  # an older huggingface_hub filled the cache: what is there is all that is known
                files = _files_below(_repo_folder(repo_id) / "snapshots" / str(resolved.resolved))
                if can_ask_later or not files:
                    raise
            return cls(repo_id, resolved, files, offline=reason)

    @property
    def folder(self) -> Path:
        """Where the files are once they have been fetched, whichever these are."""
        return _repo_folder(self.repo_id) / "snapshots" / str(self.revision.resolved)

    def fetch(self, names: Collection[str], on_progress: OnProgress | None = None) -> None:
        """Makes sure that these files are in the folder."""
        missing = [name for name in names if not (self.folder / name).exists()]
        if missing and self.offline:
            raise CheckpointError(
                f"{self.offline}, and the cache of huggingface_hub lacks {first_names(missing)} of {self}: "
                "fetch it once with a network"
            )
        progress = _Progress(self._size(names), self._size(set(names) - set(missing)), on_progress)
        if missing:
            with _in_one_sentence(self.repo_id, self.revision):
                self._refuse_full_disk(missing)
                for name in missing:
                    if self.files[name].sha256:
                        self._fetch_large(name, progress)
                self._link(missing)
        progress.end()

    def _size(self, names: Collection[str]) -> int:
        return sum(self.files[name].size for name in names)

    def _refuse_full_disk(self, names: Collection[str]) -> None:
        needed = sum(self.files[name].size - self._bytes_here(name) for name in names)
        folder = next(path for path in (self.folder, *self.folder.parents) if path.exists())
        free = shutil.disk_usage(folder).free
        if needed > free:
            raise CheckpointError(
                f"fetching {self} takes {_gigabytes(needed)} GB, and {folder} has {_gigabytes(free)} GB free: "
                "make room, or set HF_HOME to a folder on a larger disk"
            )

    def _bytes_here(self, name: str) -> int:
        """How much of a file the cache has already, from a fetch that was cut or from another revision."""
        whole, part = self._blob(name), self._part(name)
        return next((path.stat().st_size for path in (whole, part) if path is not None and path.exists()), 0)

    def _blob(self, name: str) -> Path | None:
        """Where huggingface_hub keeps a large file, and looks for it before it downloads it."""
        sha256 = self.files[name].sha256
        return None if sha256 is None else _repo_folder(self.repo_id) / "blobs" / sha256

    def _part(self, name: str) -> Path | None:
        blob = self._blob(name)
        return None if blob is None else blob.with_name(f"{blob.name}.triptych.incomplete")

    def _fetch_large(self, name: str, progress: _Progress) -> None:
        """Puts a large file among the cache's blobs. What came before it was cut stays, and the next fetch goes on from there."""
        from huggingface_hub import constants, hf_hub_url
        from huggingface_hub.file_download import http_get
        from huggingface_hub.utils import WeakFileLock, build_hf_headers  # type: ignore[attr-defined]

        file, blob, part = self.files[name], self._blob(name), self._part(name)
        assert blob is not None and part is not None, "the Hub tells the sha256 of a large file"
        lock = Path(constants.HF_HUB_CACHE) / ".locks" / blob.parent.parent.name / f"{blob.name}.lock"  # huggingface_hub's own
        for folder in (blob.parent, lock.parent):
            folder.mkdir(parents=True, exist_ok=True)
        with WeakFileLock(lock):
            if blob.exists():
                return progress.add(file.size)
            with _Reported(part, progress) as target:
                if target.tell() > file.size:
                    target.seek(0)
                    target.truncate()
                progress.add(target.tell())
                http_get(
                    hf_hub_url(self.repo_id, name, revision=self.revision.resolved),
                    target,
                    resume_size=target.tell(),
                    headers=build_hf_headers(library_name="triptych", headers={"Accept-Encoding": "identity"}),
                    expected_size=file.size,
                    displayed_filename=name,
                    tqdm_class=_no_bar(),
                )
            _refuse_other_content(part, file.sha256, f"{name} of {self}")
            part.replace(blob)

    def _link(self, names: Collection[str]) -> None:
        """Has huggingface_hub put its blobs in the folder, and fetch what is small."""
        import huggingface_hub

        huggingface_hub.snapshot_download(
            self.repo_id,
            revision=self.revision,
            allow_patterns=[glob.escape(name) for name in names],
            library_name="triptych",
            tqdm_class=_no_bar(),
        )


class _Progress:
    """Adds up what has come, and tells it."""

    def __init__(self, total: int, done: int, on_progress: OnProgress | None) -> None:
        self._total, self._done, self._tell = total, done, on_progress or (lambda done, total: None)

    def add(self, count: int) -> None:
        self._done = min(self._done + count, self._total)
        self._tell(self._done, self._total)

    def end(self) -> None:
        if self._total:
            self.add(self._total)


class _Reported(io.BufferedWriter):
    """A file that is appended to, and says so."""

    def __init__(self, path: Path, progress: _Progress) -> None:
        super().__init__(io.FileIO(path, "ab"))
        self._progress = progress

    def write(self, data: Any, /) -> int:
        self._progress.add(len(data))
        return super().write(data)


def _no_bar() -> Any:
    from huggingface_hub.utils import tqdm  # type: ignore[attr-defined]

    class NoBar(tqdm):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **{**options, "disable": True})

    return NoBar


def _refuse_other_content(path: Path, sha256: str | None, what: str) -> None:
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != sha256:
        path.unlink()
        raise CheckpointError(
            f"{what} came with the sha256 {found}, and the Hub states {sha256}; what came was removed, fetch it again"
        )


def _files_below(folder: Path) -> dict[str, _File]:
    return {path.relative_to(folder).as_posix(): _File(path.stat().st_size, None) for path in folder.rglob("*") if path.is_file()}


def _repo_folder(repo_id: str) -> Path:
    """Of the cache."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    return Path(constants.HF_HUB_CACHE).expanduser().resolve() / repo_folder_name(repo_id=repo_id, repo_type="model")


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.3g}"


@contextmanager
def _in_one_sentence(repo_id: str, revision: str | None) -> Iterator[None]:
    """Errors of huggingface_hub and of the network as one sentence that says what to do."""
    try:
        import httpx2
        from huggingface_hub import constants, errors
    except ImportError as error:
        raise CheckpointError(
            f"{repo_id} is on the Hub, and huggingface_hub is not installed: pip install huggingface_hub"
        ) from error
    endpoint, name = constants.ENDPOINT, f"{repo_id}@{revision or constants.DEFAULT_REVISION}"
    try:
        yield
    except errors.GatedRepoError as error:
        raise CheckpointError(
            f"{repo_id} is given to those alone who accepted its licence: accept it at {endpoint}/{repo_id}, "
            "and set HF_TOKEN to a token of that account"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise CheckpointError(
            f"{repo_id} has no revision {revision!r}: name a branch, a tag or a commit of {endpoint}/{repo_id}"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise NotOnTheHub(
            f"{endpoint} has no model {repo_id}, or does not show it: check the name, and set HF_TOKEN where it is private"
        ) from error
    except (errors.RevisionResolutionError, errors.CachedRepoTreeNotFoundError) as error:
        offline = constants.is_offline_mode() or error.__cause__ is None
        reason = "offline" if offline else f"{endpoint} cannot be reached"
        raise CheckpointError(
            f"{reason}, and the cache of huggingface_hub has no {name}: fetch it once with a network"
        ) from error
    except errors.HfHubHTTPError as error:
        raise CheckpointError(_answered(error.response.status_code, name, endpoint)) from error
    except (httpx2.HTTPError, errors.OfflineModeIsEnabled, errors.LocalEntryNotFoundError) as error:
        if isinstance(error.__cause__, errors.HfHubHTTPError):
            raise CheckpointError(_answered(error.__cause__.response.status_code, name, endpoint)) from error
        raise CheckpointError(
            f"{name} did not come: {endpoint} cannot be reached ({error.__cause__ or error}); "
            "connect and fetch it again, what has come is kept"
        ) from error
    except errors.HFValidationError as error:
        raise NotOnTheHub(f"{repo_id!r} is no id of the Hub, which has owner/name: {str(error).splitlines()[0]}") from error
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise CheckpointError(f"the disk of {constants.HF_HUB_CACHE} is full: make room and fetch {name} again") from error
        raise CheckpointError(f"{name} could not be fetched to {constants.HF_HUB_CACHE}: {str(error).splitlines()[0]}") from error


def _answered(status: int, name: str, endpoint: str) -> str:
    if status in (401, 403):
        return f"{endpoint} does not let us have {name} (status {status}): set HF_TOKEN to a token that may read it"
    if status == 429:
        return f"{endpoint} has had too many requests from here (status 429): wait, or set HF_TOKEN; then fetch {name} again"
    return f"{endpoint} answered {name} with status {status}: try again later, what has come is kept"

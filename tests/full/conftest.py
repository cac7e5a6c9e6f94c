"""Models of full size, written once.

`FULL_SIZE_FOLDER` names a folder where they and what was compiled of them stay from one run to the next: 12 GB. Without it
they are written into a folder of pytest's and deleted at the end.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from benchmarks.random_checkpoint import CLIP_VOCABULARY, write_stable_diffusion_1, write_text_encoder_of_stable_diffusion_2

KEPT = os.environ.get("FULL_SIZE_FOLDER")


@pytest.fixture(scope="session")
def full_size_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = Path(KEPT) if KEPT else tmp_path_factory.mktemp("full-size")
    yield folder
    if not KEPT:
        shutil.rmtree(folder)


@pytest.fixture(scope="session")
def stable_diffusion_1(full_size_folder: Path) -> Path:
    """A folder as diffusers has it, in half precision."""
    return written_once(full_size_folder / "stable-diffusion-v1-5", write_stable_diffusion_1)


@pytest.fixture(scope="session")
def stable_diffusion_2(full_size_folder: Path) -> Path:
    """No more than the text encoder's stage reads."""
    return written_once(full_size_folder / "stable-diffusion-2-1", write_text_encoder_of_stable_diffusion_2)


def written_once(folder: Path, write: Callable[[Path], None]) -> Path:
    if not CLIP_VOCABULARY.exists():
        pytest.skip(f"CLIP's vocabulary, {CLIP_VOCABULARY.name}, is not beside the repository")
    if not (folder / "model_index.json").exists():  # what is written last
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        write(folder)
    return folder

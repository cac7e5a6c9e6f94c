from __future__ import annotations

from pathlib import Path

import pytest

from triptych.checkpoints.diffusers_folder import DiffusersFolder
from triptych.checkpoints.registry import EMBEDDED, find_model
from triptych.errors import CheckpointError


def test_a_path_is_the_folder_itself(tmp_path: Path):
    found = find_model(str(tmp_path))
    assert isinstance(found, DiffusersFolder)
    assert found.path == tmp_path


def test_the_embedded_model_is_package_data():
    assert EMBEDDED["vignette"].parent.name == "triptych"


@pytest.mark.parametrize("name", ["vignete", "runwayml/stable-diffusion-v1-5", ""])
def test_an_unknown_name_is_refused_with_the_names_there_are(name: str):
    with pytest.raises(CheckpointError, match=f"there is no model '{name}': it is neither a folder nor one of vignette"):
        find_model(name)


def test_a_file_is_no_model(tmp_path: Path):
    file = tmp_path / "model.safetensors"
    file.touch()
    with pytest.raises(CheckpointError, match="neither a folder"):
        find_model(str(file))

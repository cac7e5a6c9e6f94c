from __future__ import annotations

import hashlib
import io
import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.cli.conftest import Run
from tests.fakes import FakeDiffusion
from tests.gateway.running import Stages
from tests.gateway.served import served
from triptych.cli.processes import free_ports
from triptych.errors import StageFailed, StartError
from triptych.serving.settings import StageSettings


def format_of(path: Path) -> str | None:
    with Image.open(path) as picture:
        return picture.format


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """A gateway in front of fake stages that work."""
    with served(Stages().app()) as address:
        yield address


class TestGenerate:
    def test_the_picture_is_written_and_named_with_its_seed(self, run: Run, url: str, tmp_path: Path) -> None:
        ended = run("generate", "a red circle", "--url", url, "--seed", 7)
        assert ended.code == 0
        assert ended.out.endswith("triptych.png (seed 7)\n")
        assert format_of(tmp_path / "triptych.png") == "PNG"

    def test_a_pipe_gets_plain_lines_of_progress(self, run: Run, url: str) -> None:
        ended = run("generate", "a red circle", "--url", url)
        assert ended.err == "encoding\ndenoising\ndecoding\n"

    def test_a_warning_is_no_error(self, run: Run, url: str) -> None:
        ended = run("generate", "word " * 200, "--url", url, "--truncate")
        assert ended.code == 0
        assert "\nwarning: " in ended.err
        assert "error" not in ended.err

    @pytest.mark.parametrize(("name", "kind"), [("a.jpg", "JPEG"), ("a.jpeg", "JPEG"), ("A.WEBP", "WEBP"), ("a.png", "PNG")])
    def test_the_ending_decides_the_format(self, run: Run, url: str, name: str, kind: str) -> None:
        assert run("generate", "x", "--url", url, "-o", name).code == 0
        assert format_of(Path(name)) == kind

    def test_several_pictures_are_numbered(self, run: Run, url: str, tmp_path: Path) -> None:
        ended = run("generate", "x", "--url", url, "--num-images", 2, "--seed", 5, "-o", tmp_path / "many.png")
        assert ended.code == 0
        assert sorted(path.name for path in tmp_path.glob("*.png")) == ["many-0.png", "many-1.png"]
        assert "many-1.png (seed 6)" in ended.out.replace("\n", "")

    def test_the_receipt_names_the_pixels_of_each_picture(self, run: Run, url: str, tmp_path: Path) -> None:
        ended = run("generate", "x", "--url", url, "--num-images", 2, "--seed", 5, "-o", "a.png", "--receipt", "a.json")
        assert ended.code == 0
        kept = json.loads((tmp_path / "a.json").read_text())
        assert [image["seed"] for image in kept["images"]] == [5, 6]
        assert kept["parameters"]["prompt"] == "x"
        pixels = [np.asarray(Image.open(tmp_path / f"a-{index}.png")).tobytes() for index in range(2)]
        assert kept["receipt"]["pixels"] == [hashlib.sha256(picture).hexdigest() for picture in pixels]

    def test_every_option_reaches_the_gateway(self, run: Run) -> None:
        stages = Stages()
        options = (
            "--negative-prompt=blue --steps=2 --guidance-scale=3.5 --seed=18446744073709551615 --width=96 --height=64 "
            "--sampler=euler --model=fake --truncate --timeout=40"
        )
        with served(stages.app()) as url:
            ended = run("generate", "word " * 100, "--url", url, *options.split())
        assert ended.code == 0
        (encode,), (denoise,) = stages.text_encoder.asked, stages.diffusion.asked
        assert encode.prompts == ("word " * 100, "blue")
        assert (denoise.num_steps, denoise.guidance_scale, denoise.sampler) == (2, 3.5, "euler")
        assert (denoise.width, denoise.height, denoise.seeds.tolist()) == (96, 64, [2**64 - 1])
        assert "the prompt was cut from 100 to 77 tokens" in ended.err

    def test_address_and_key_come_from_the_environment_too(self, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        with served(Stages().app(api_keys=("secret",))) as url:
            monkeypatch.setenv("TRIPTYCH_URL", url)
            refused = run("generate", "x")
            monkeypatch.setenv("TRIPTYCH_API_KEY", "secret")
            assert run("generate", "x").code == 0
        assert refused.code == 1
        assert "Authorization: Bearer" in refused.err

    @pytest.mark.parametrize(
        ("arguments", "sentence"),
        [
            (["x", "--num-steps", "0"], "num_steps must be a whole number from 1 to 150, not 0"),
            (["x", "-o", "a.gif"], "a.gif must end in .png, .jpg, .jpeg, .webp"),
            (["x", "-o", "nowhere/a.png"], "the folder nowhere does not exist"),
            (["x", "--receipt", "nowhere/a.json"], "the folder nowhere does not exist"),
            ([""], "prompt must be a text of 1 to 4000 characters"),
            (["x", "--model", "[bold]other"], "there is no model '[bold]other' here"),
        ],
    )
    def test_an_error_is_one_sentence_and_nothing_is_written(
        self, run: Run, url: str, tmp_path: Path, arguments: list[str], sentence: str
    ) -> None:
        ended = run("generate", *arguments, "--url", url)
        assert ended.code == 1
        assert sentence in ended.err
        assert ended.err.startswith("error: ")
        assert ended.err.count("\n") == 1
        assert list(tmp_path.iterdir()) == []

    def test_a_failure_in_the_middle_is_one_sentence_too(self, run: Run) -> None:
        stages = Stages(diffusion=FakeDiffusion(failure=StageFailed("the diffusion stage broke off", stage="diffusion")))
        with served(stages.app()) as url:
            ended = run("generate", "x", "--url", url)
        assert ended.code == 1
        assert ended.err.endswith("error: the diffusion stage broke off\n")

    def test_no_gateway(self, run: Run) -> None:
        (port,) = free_ports(1)
        ended = run("generate", "x", "--url", f"http://127.0.0.1:{port}")
        assert ended.code == 1
        assert "no gateway answers at" in ended.err
        assert "Traceback" not in ended.err

    def test_a_file_that_cannot_be_written(self, run: Run, url: str, tmp_path: Path) -> None:
        (tmp_path / "taken.png").mkdir()
        ended = run("generate", "x", "--url", url, "-o", "taken.png")
        assert ended.code == 1
        assert "taken.png cannot be written" in ended.err


class TestUp:
    def test_a_taken_port_is_named(self, run: Run) -> None:
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            listener.listen()
            port = listener.getsockname()[1]
            ended = run("up", "--port", port)
        assert ended.code == 1
        # Another test may have one of the next three.
        assert re.search(rf"ports? {port}\b[\d, ]* cannot be listened on", ended.err)


class TestServe:
    def test_an_impossible_setting_is_one_sentence(self, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("TRIPTYCH_MAX_RUNNING_REQUESTS", "none")
        ended = run("serve", "central")
        assert ended.code == 1
        assert "TRIPTYCH_MAX_RUNNING_REQUESTS" in ended.err
        assert "Traceback" not in ended.err

    def test_beyond_loopback_a_key_is_demanded(self, run: Run) -> None:
        ended = run("serve", "central", "--host", "0.0.0.0")
        assert ended.code == 1
        assert "set TRIPTYCH_API_KEYS" in ended.err

    def test_an_unknown_service_is_refused(self, run: Run) -> None:
        assert run("serve", "encoder").code == 2

    def test_a_service_whose_parent_is_gone_does_not_start(self) -> None:
        command = [sys.executable, "-m", "triptych.cli", "serve", "central", "--parent", str(2**22 + 1)]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=100)
        assert ended.returncode == 1
        assert "the process that started this service has ended" in ended.stderr


class TestPrepare:
    def test_the_stage_is_started_once_and_closed(self, run: Run, monkeypatch: pytest.MonkeyPatch, cache_folder: Path) -> None:
        calls: list[object] = []

        class Stage:
            def __init__(self, name: str, settings: StageSettings) -> None:
                calls.append((name, settings.cache_folder))

            def start(self) -> None:
                calls.append("start")

            def close(self) -> None:
                calls.append("close")

        monkeypatch.setattr("triptych.cli.service._make_stages", lambda *given: [Stage(*given)])
        # The token of the service to come is not asked for: nothing listens yet.
        monkeypatch.setenv("TRIPTYCH_HOST", "0.0.0.0")
        ended = run("prepare", "decoder")
        assert calls == [("decoder", cache_folder), "start", "close"]
        assert ended.out.endswith(f"decoder is prepared in {cache_folder}\n")
        assert ended.code == 0

    def test_a_stage_that_does_not_start_is_one_sentence(self, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        class Stage:
            def __init__(self, name: str, settings: StageSettings) -> None:
                pass

            def start(self) -> None:
                raise StartError("there is no such model")

        monkeypatch.setattr("triptych.cli.service._make_stages", lambda *given: [Stage(*given)])
        ended = run("prepare", "diffusion")
        assert ended.code == 1
        assert ended.err == "error: there is no such model\n"

    def test_a_gateway_has_nothing_to_prepare(self, run: Run) -> None:
        assert run("prepare", "central").code == 2


def test_the_version(run: Run) -> None:
    assert run("--version").out == f"triptych {version('triptych')}\n"


def test_help_names_every_command(run: Run) -> None:
    ended = run("--help")
    assert ended.code == 0
    for command in ("serve", "prepare", "up", "generate", "verify", "demo", "models", "pull", "check", "swap"):
        assert command in ended.out


def test_the_command_line_imports_little() -> None:
    program = "import sys, triptych.cli; print(sorted(sys.modules.keys() & {'fastapi', 'httpx2', 'pydantic', 'numpy', 'rich'}))"
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=100, check=True)
    assert ended.stdout == "[]\n"


def test_a_terminal_sees_a_bar(url: str, tmp_path: Path) -> None:
    import pty

    leader, follower = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "triptych.cli", "generate", "a red circle", "--url", url],
        stdout=subprocess.PIPE,
        stderr=follower,
        cwd=tmp_path,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "100"},
    )
    os.close(follower)
    seen = io.BytesIO()
    while True:
        try:
            chunk = os.read(leader, 4096)
        except OSError:
            break
        if not chunk:
            break
        seen.write(chunk)
    os.close(leader)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert out.startswith(b"triptych.png (seed ")
    assert "━".encode() in seen.getvalue()

"""Imports run one way: every import of the code, also inside functions, against the table of docs/architecture.md."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

BACKENDS = frozenset({"keras", "keras_cv", "tensorflow", "jax", "openvino"})
"""What a gateway and a client start without."""


@dataclass(frozen=True, kw_only=True)
class Room:
    """One line of the table.

    Attributes:
        imports: Rooms that it may import anywhere.
        inside_functions: Rooms that it may import inside functions only.
        backends: Whether it may import keras and what runs under it.
        base_only: Whether the base install must be enough for it.
    """

    imports: frozenset[str] = frozenset()
    inside_functions: frozenset[str] = frozenset()
    backends: bool = False
    base_only: bool = False


def room(imports: str = "", *, inside_functions: str = "", backends: bool = False, base_only: bool = False) -> Room:
    """A line of the table; everyone may import `errors`, and itself."""
    return Room(
        imports=frozenset(imports.split()) | {"errors", "triptych"},
        inside_functions=frozenset(inside_functions.split()),
        backends=backends,
        base_only=base_only,
    )


TABLE = {
    "triptych": room(base_only=True),  # triptych/__init__.py
    "errors": room(base_only=True),
    "contract": room(base_only=True),
    "wire": room("contract", base_only=True),
    "sampling": room(),
    "models": room(backends=True),
    "engines": room(backends=True),
    "checkpoints": room("sampling models", backends=True),
    "stages": room("contract sampling models checkpoints engines"),
    "pipeline": room("contract", base_only=True),
    "remote": room("contract wire", base_only=True),
    "serving": room("contract wire", base_only=True),
    "gateway": room("pipeline remote serving contract wire", base_only=True),
    "client": room(base_only=True),
    "cli": room("client", inside_functions="checkpoints stages serving gateway", base_only=True),
    "services/text_encoder": room("stages serving"),
    "services/diffusion": room("stages serving"),
    "services/decoder": room("stages serving"),
    "services/central": room("gateway serving"),
    "services/all_in_one": room("gateway stages serving"),
    "training": room("contract sampling models checkpoints engines stages pipeline", backends=True),
    "benchmarks": room(
        "contract wire sampling models checkpoints engines stages pipeline remote serving gateway client cli", backends=True
    ),
}

FOLDERS = ("triptych", "services", "training", "benchmarks")
FORBIDDEN_TO_ALL = frozenset({"services", "tests", "benchmarks"})


@dataclass(frozen=True, kw_only=True)
class Import:
    """One imported module, by its full dotted name."""

    module: str
    line: int
    inside_function: bool


def imports_of(path: Path) -> Iterator[Import]:
    """Every import of a file, those inside functions and under `if TYPE_CHECKING` too."""
    yield from _imports_below(ast.parse(path.read_text(encoding="utf-8")), inside_function=False)


def _imports_below(node: ast.AST, *, inside_function: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            for alias in child.names:
                yield Import(module=alias.name, line=child.lineno, inside_function=inside_function)
        elif isinstance(child, ast.ImportFrom):
            # `from triptych import wire` imports triptych.wire: the names count as modules of the package.
            for alias in child.names:
                prefix = "." * child.level + (child.module or "")
                yield Import(module=f"{prefix}.{alias.name}", line=child.lineno, inside_function=inside_function)
        else:
            deeper = inside_function or isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
            yield from _imports_below(child, inside_function=deeper)


def room_of_file(path: Path) -> str:
    """The room that a file (relative to the root) stands in."""
    parts = path.with_suffix("").parts
    if parts[0] == "triptych":
        return "triptych" if parts[1] in ("__init__", "__main__") else parts[1]
    if parts[0] == "services":
        return "/".join(parts[:2])
    return parts[0]


def violations(root: Path) -> list[str]:
    """One sentence for each import that runs against the table.

    Args:
        root: Of a tree with the folders `triptych`, `services`, ...
    """
    found = []
    for folder in FOLDERS:
        for path in sorted((root / folder).rglob("*.py")):
            relative = path.relative_to(root)
            name = room_of_file(relative)
            if name not in TABLE:
                found.append(f"{relative}: the table of rooms has no line for {name}")
                continue
            found += [
                f"{relative}:{each.line}: {name} {fault}"
                for each in imports_of(path)
                for fault in _faults(name, TABLE[name], each)
            ]
    return found


def _faults(name: str, line: Room, each: Import) -> Iterator[str]:
    if each.module.startswith("."):
        yield f"imports {each.module}: imports are absolute"
        return
    top, *rest = each.module.split(".")
    if top == "triptych":
        target = rest[0] if rest and rest[0] in TABLE else "triptych"
        if target == name or target in line.imports:
            return
        if target not in line.inside_functions:
            yield f"imports {target}"
        elif not each.inside_function:
            yield f"imports {target} at module level; only inside the function that needs it"
    elif top in FORBIDDEN_TO_ALL and not (top == name and top == "benchmarks"):
        yield f"imports {top}: nothing imports services, tests or benchmarks"
    elif top == "training" and name not in ("training", "benchmarks"):
        yield "imports training"
    elif top in BACKENDS and not line.backends:
        yield f"imports {top}: only models, engines, checkpoints and training do"


def test_imports_run_one_way(root: Path) -> None:
    assert violations(root) == []


def documented_table(page: str) -> dict[str, tuple[set[str], set[str]]]:
    """docs/architecture.md's table: a room's imports, and those inside functions only."""
    stages = {"services/<stage>": ["services/text_encoder", "services/diffusion", "services/decoder"]}
    table = {}
    for rooms, imports in re.findall(r"^\| (`.+`) \| (.+) \|$", page.partition("| room | imports |")[2], re.MULTILINE):
        anywhere, _, inside = imports.partition(";")
        for name in re.findall(r"`(.+?)`", rooms):
            for each in stages.get(name, [name]):
                table[each] = (set(re.findall(r"`(.+?)`", anywhere)), set(re.findall(r"`(.+?)`", inside)))
    return table


def test_the_table_is_the_documented_one(root: Path) -> None:
    documented = documented_table((root / "docs" / "architecture.md").read_text(encoding="utf-8"))
    outside = {"triptych", "training", "benchmarks"}
    held = {name: (set(line.imports - {"errors", "triptych"}), set(line.inside_functions)) for name, line in TABLE.items()}
    assert documented == {name: line for name, line in held.items() if name not in outside}


def test_every_room_has_a_line(root: Path) -> None:
    modules = [path for path in (root / "triptych").iterdir() if path.suffix == ".py" or path.is_dir()]
    rooms = {path.stem for path in modules if path.suffix == ".py" or any(path.rglob("*.py"))}
    assert rooms - {"__init__", "__main__"} <= set(TABLE)


@pytest.mark.parametrize(
    ("path", "source", "sentence"),
    [
        ("triptych/wire/codec.py", "from triptych.stages import options", "triptych/wire/codec.py:1: wire imports stages"),
        ("triptych/gateway/app.py", "def f():\n    from triptych import stages", "gateway/app.py:2: gateway imports stages"),
        ("triptych/gateway/app.py", "import triptych.engines.openvino", "gateway imports engines"),
        ("triptych/stages/decoder.py", "def f():\n    import keras.ops", "stages imports keras: only models"),
        ("triptych/sampling/ddim.py", "import tensorflow as tf", "sampling imports tensorflow: only models"),
        ("triptych/remote/a.py", "async def f():\n    import openvino", "remote imports openvino: only models"),
        ("triptych/cli.py", "from triptych.gateway.app import create_app", "cli imports gateway at module level"),
        ("triptych/cli.py", "import services.central.app", "cli imports services: nothing imports services"),
        ("triptych/models/unet.py", "from ..engines import get_engine", "imports are absolute"),
        ("triptych/models/unet.py", "from tests import tiny_models", "models imports tests: nothing imports"),
        ("triptych/client.py", "from triptych import contract", "client imports contract"),
        ("triptych/pipeline.py", "if TYPE_CHECKING:\n    import triptych.stages", "pipeline.py:2: pipeline imports stages"),
        ("triptych/utils.py", "", "the table of rooms has no line for utils"),
        ("services/decoder/app.py", "from triptych.gateway import app", "services/decoder imports gateway"),
        ("services/central/app.py", "from triptych.stages import decoder", "services/central imports stages"),
        ("training/vae.py", "from triptych.gateway import app", "training imports gateway"),
    ],
)
def test_a_planted_import_is_found(tmp_path: Path, path: str, source: str, sentence: str) -> None:
    planted = tmp_path / path
    planted.parent.mkdir(parents=True)
    planted.write_text(source, encoding="utf-8")

    (found,) = violations(tmp_path)

    assert sentence in found


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("triptych/cli.py", "def serve():\n    from triptych.gateway.app import create_app"),
        ("triptych/stages/decoder.py", "from triptych.engines import get_engine\nfrom triptych.errors import EngineError"),
        ("triptych/models/unet.py", "def build():\n    import keras"),
    ],
)
def test_a_right_import_is_not(tmp_path: Path, path: str, source: str) -> None:
    right = tmp_path / path
    right.parent.mkdir(parents=True)
    right.write_text(source, encoding="utf-8")

    assert violations(tmp_path) == []


def modules_after(statement: str, root: Path) -> set[str]:
    """Top-level names of the modules that a fresh interpreter holds after a statement."""
    code = f"import sys\n{statement}\nprint(*sorted({{name.partition('.')[0] for name in sys.modules}}))"
    command = [sys.executable, "-c", code]
    finished = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=100, check=False)
    assert finished.returncode == 0, finished.stderr
    return set(finished.stdout.split())


@pytest.mark.parametrize(
    "module",
    [
        "triptych.contract",
        "triptych.gateway.app",
        "triptych.client",
        "triptych.cli",
        "triptych.stages.text_encoder",
        "triptych.stages.diffusion",
        "triptych.stages.decoder",
        "triptych.models.config",
        "triptych.models.tokenizer",
        "services.text_encoder.app",
        "services.diffusion.app",
        "services.decoder.app",
        "services.central.app",
        "services.all_in_one.app",
    ],
)
def test_starts_without_keras(module: str, root: Path) -> None:
    held = modules_after(f"import {module}", root)

    assert module.partition(".")[0] in held
    assert held & BACKENDS == set()


def test_the_measure_of_modules_can_fail(root: Path) -> None:
    assert "keras" in modules_after("import keras", root)


@pytest.mark.parametrize("service", ["text_encoder", "diffusion", "decoder", "central", "all_in_one"])
def test_importing_a_service_builds_nothing(service: str, root: Path) -> None:
    statement = (
        f"import services.{service}.app as module\n"
        "from fastapi import FastAPI\n"
        "assert not [name for name, value in vars(module).items() if isinstance(value, FastAPI)]\n"
        "assert callable(module.create_app)"
    )
    assert "fastapi" in modules_after(statement, root)


FILES_OF_EXTRAS = {f"triptych/gateway/jobs/{name}.py": "jobs" for name in ("table", "schema", "blobs")}
"""Files of rooms that the base install is enough for, which are imported only where an extra is installed."""


def distribution_modules(root: Path, extra: str | None = None) -> set[str]:
    """Top-level module names of an install's own requirements, and of the halves that two of them are made of."""
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    requirements = [*project["dependencies"], *(project["optional-dependencies"][extra] if extra else ())]
    names = {requirement.split(">")[0].split("[")[0] for requirement in requirements}
    modules = {name.replace("-", "_").removesuffix("_api") for name in names}
    return modules | {"starlette", "pydantic_core"} | ({"PIL"} if "pillow" in names else set())


def test_the_base_install_is_enough_for_gateway_and_client(root: Path) -> None:
    strangers = [
        f"{path.relative_to(root)}:{each.line} imports {each.module}"
        for path in sorted((root / "triptych").rglob("*.py"))
        if TABLE[room_of_file(path.relative_to(root))].base_only
        for each in imports_of(path)
        if each.module.partition(".")[0] not in _allowed(root, FILES_OF_EXTRAS.get(path.relative_to(root).as_posix()))
    ]
    assert strangers == []


@cache
def _allowed(root: Path, extra: str | None) -> set[str]:
    return set(sys.stdlib_module_names) | {"triptych"} | distribution_modules(root, extra)


def test_a_gateway_starts_without_what_jobs_need(root: Path) -> None:
    held = modules_after("import triptych.gateway.app, triptych.cli.jobs", root)
    assert "triptych" in held
    assert held & {"sqlalchemy", "obstore", "aiosqlite", "asyncpg"} == set()

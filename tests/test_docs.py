"""The documents say what is: commands exist, links lead somewhere, generated pages are fresh."""

from __future__ import annotations

import importlib.util
import re
import subprocess
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted(path.relative_to(ROOT).as_posix() for path in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
LINK = re.compile(r"\]\(([^)\s]+)\)")


def makefile_verbs(makefile: str) -> dict[str, str]:
    """The .PHONY verbs of a Makefile, each with the comment that `make help` shows, or with nothing."""
    (phony,) = re.findall(r"^\.PHONY: (.+)$", makefile, re.MULTILINE)
    comments = dict(re.findall(r"^([a-z-]+):.*?  ## (.+)$", makefile, re.MULTILINE))
    return {verb: comments.get(verb, "") for verb in phony.split()}


def make_commands(text: str) -> set[str]:
    """Verbs that a text tells its reader to `make`, in code."""
    code = re.findall(r"```.*?```|`[^`]+`", text, re.DOTALL)
    return {verb for each in code for verb in re.findall(r"(?:^|`|\" )make ([a-z][a-z-]*)", each, re.MULTILINE)}


def anchors(text: str) -> set[str]:
    """The anchors that a Markdown viewer makes of a page's headings."""
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken_links(page: Path) -> list[str]:
    """Links of a page to files or headings that do not exist; links to other hosts are left alone."""
    found = []
    for link in LINK.findall(page.read_text(encoding="utf-8")):
        if "://" in link or link.startswith("mailto:"):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and anchor not in anchors(target.read_text(encoding="utf-8"))):
            found.append(link)
    return found


def tracked_files() -> list[Path]:
    """Files that are in git, as text readers want them: weights and pictures left out."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True, text=True).stdout
    return [ROOT / name for name in listed.split("\0") if name and (ROOT / name).is_file()]


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    assert broken_links(ROOT / page) == []


def test_a_broken_link_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# One two\n[a](page.md) [b](#one-two) [c](gone.md) [d](#three) [e](https://example.org/x)", encoding="utf-8")
    assert broken_links(page) == ["gone.md", "#three"]


def test_every_verb_has_its_comment() -> None:
    verbs = makefile_verbs((ROOT / "Makefile").read_text(encoding="utf-8"))
    assert {"demo", "test", "test-reference", "lint", "fix", "up", "bench", "train", "clean"} <= set(verbs)
    assert [verb for verb, comment in verbs.items() if not comment] == []


def test_make_help_lists_every_verb() -> None:
    shown = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, check=True, text=True).stdout
    verbs = makefile_verbs((ROOT / "Makefile").read_text(encoding="utf-8"))
    assert set(re.findall(r"^  make ([a-z-]+) +\S", shown, re.MULTILINE)) == set(verbs)


@pytest.mark.parametrize("page", PAGES)
def test_documents_name_verbs_that_exist(page: str) -> None:
    verbs = makefile_verbs((ROOT / "Makefile").read_text(encoding="utf-8"))
    assert make_commands((ROOT / page).read_text(encoding="utf-8")) - set(verbs) == set()


def test_the_readme_shows_the_two_commands() -> None:
    assert {"demo", "test"} <= make_commands((ROOT / "README.md").read_text(encoding="utf-8"))


def test_no_path_of_somebodys_machine_is_in_a_tracked_file() -> None:
    place = re.compile(rb"(?<![\w.])/(home|Users|work)/[\w.-]+")
    texts = [path for path in tracked_files() if path.suffix not in (".safetensors", ".npz", ".png", ".gz")]
    assert len(texts) > 20
    found = {path.relative_to(ROOT).as_posix(): place.search(path.read_bytes()) for path in texts}
    assert {path: match.group() for path, match in found.items() if match} == {}


def generator() -> ModuleType:
    """docs/generate.py as a module."""
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["settings.md", "cli.md"])
def test_a_generated_page_is_fresh(name: str) -> None:
    assert (ROOT / "docs" / name).read_text(encoding="utf-8") == generator().PAGES[name](), "run `make fix`"

"""The Hub and its cache, as far as the registry asks them."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import pytest

from triptych.checkpoints import hub
from triptych.checkpoints.checkpoint import Network


@dataclass
class FakeHub:
    """What the Hub and its cache hold, and what was asked of them.

    Attributes:
        folders: Repositories that are there, by id.
        files: Single files that are there, by id and name.
        cached: What can be had without the network: (id, network).
        variant: Of what is cached.
    """

    folders: dict[str, Path] = field(default_factory=dict)
    files: dict[tuple[str, str], Path] = field(default_factory=dict)
    cached: set[tuple[str, str]] = field(default_factory=set)
    variant: str | None = None
    asked: list[tuple[str, Any]] = field(default_factory=list)
    told: list[dict[str, Any]] = field(default_factory=list)

    def fetch_from_hub(self, repo: str, networks: Collection[Network], *, on_progress: Any = None, **options: Any) -> Path:
        self.asked.append((repo, tuple(networks)))
        self.told.append(options)
        if repo not in self.folders:
            raise hub.NotOnTheHub(f"there is no {repo} on the Hub")
        on_progress(0, 2 * 10**6)
        on_progress(2 * 10**6, 2 * 10**6)
        self.variant = options["variant"]
        self.cached |= {(repo, network) for network in ("", *networks)}
        return self.folders[repo]

    def folder_in_cache(
        self, repo: str, networks: Collection[Network], *, variant: str | None = None, **options: Any
    ) -> Path | None:
        here = variant == self.variant and all((repo, network) in self.cached for network in (networks or ("",)))
        return self.folders[repo] if here else None

    def fetch_file_from_hub(self, repo: str, file: str, *, on_progress: Any = None, **options: Any) -> Path:
        self.asked.append((repo, file))
        self.told.append(options)
        if (repo, file) not in self.files:
            raise hub.NotOnTheHub(f"there is no {repo}:{file} on the Hub")
        self.cached.add((repo, file))
        return self.files[repo, file]

    def file_in_cache(self, repo: str, file: str, **options: Any) -> Path | None:
        return self.files[repo, file] if (repo, file) in self.cached else None

    def put_in_place(self, monkeypatch: pytest.MonkeyPatch) -> Self:
        """Of the real one, for as long as the test runs."""
        for name in ("fetch_from_hub", "folder_in_cache", "fetch_file_from_hub", "file_in_cache"):
            monkeypatch.setattr(hub, name, getattr(self, name))
        return self

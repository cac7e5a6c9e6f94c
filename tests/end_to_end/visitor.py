"""Somebody who uses the page: a real browser, and what a person does and sees in it."""

from __future__ import annotations

import io
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image
from playwright.sync_api import Browser, Locator, Page, expect

from triptych.contract import UInt8

PATIENCE_MS = 60_000
"""A picture takes a second; this is for a machine that is busy with something else."""

_COUNT_VIOLATIONS = """
window.violations = [];
document.addEventListener("securitypolicyviolation", (event) => window.violations.push(event.violatedDirective));
"""


def find_chromium() -> str | None:
    """Debian's Chromium, which `make chromium` installs."""
    return shutil.which("chromium-headless-shell") or shutil.which("chromium")


@dataclass
class Visitor:
    """A page in a browser of its own.

    Attributes:
        complaints: What the browser wrote to its console as errors, and errors that no script caught.
    """

    page: Page
    complaints: list[str] = field(default_factory=list)

    def forgive(self, words: str) -> None:
        """Takes complaints with these words away. There must be one: the browser itself logs each request that is refused."""
        forgiven = [each for each in self.complaints if words in each]
        assert forgiven, f"nothing complained of {words}, only: {self.complaints}"
        self.complaints = [each for each in self.complaints if words not in each]

    def violations(self) -> list[str]:
        found: list[str] = self.page.evaluate("window.violations")
        return found

    def __getitem__(self, id_of_element: str) -> Locator:
        return self.page.locator(f"#{id_of_element}")

    def sets(self, **fields: str) -> None:
        if not self["settings"].evaluate("details => details.open"):
            self["settings"].locator("summary").click()
        for name, value in fields.items():
            self[name].fill(value)

    def asks_for(self, prompt: str, **fields: str) -> None:
        """Fills in the form and waits until the picture is there."""
        self.sets(prompt=prompt, **fields)
        self["generate"].click()
        self.waits_for_picture()

    def waits_for_picture(self) -> None:
        expect(self["caption"]).to_be_visible(timeout=PATIENCE_MS)
        expect(self["generate"]).to_be_visible()

    def downloads(self) -> bytes:
        with self.page.expect_download() as started:
            self["download"].click()
        path = started.value.path()
        return Path(path).read_bytes()

    def chooses(self, pixels: UInt8, name: str = "mine.png") -> None:
        self["file"].set_input_files({"name": name, "mimeType": "image/png", "buffer": png(pixels)})
        expect(self["easel"]).to_be_visible()

    def paints(self, start: tuple[float, float], end: tuple[float, float]) -> None:
        """A stroke of the mouse from one place to another, as shares of the picture's width and height."""
        (x0, y0), (x1, y1) = self.place(*start), self.place(*end)
        self.page.mouse.move(x0, y0)
        self.page.mouse.down()
        self.page.mouse.move(x1, y1, steps=8)
        self.page.mouse.up()

    def place(self, x: float, y: float) -> tuple[float, float]:
        """Where on the screen a place of the picture on the easel is."""
        self["easel"].scroll_into_view_if_needed()
        box = self["easel"].bounding_box()
        assert box is not None
        return box["x"] + x * box["width"], box["y"] + y * box["height"]


def visit(browser: Browser, address: str, **context: object) -> Visitor:
    """Opens the page; `context` is playwright's."""
    page = browser.new_context(**{"viewport": {"width": 1280, "height": 800}, **context}).new_page()
    page.set_default_timeout(PATIENCE_MS)
    visitor = Visitor(page)
    page.on("console", lambda message: visitor.complaints.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: visitor.complaints.append(str(error)))
    page.add_init_script(_COUNT_VIOLATIONS)
    page.goto(address)
    return visitor


def png(pixels: UInt8) -> bytes:
    written = io.BytesIO()
    Image.fromarray(pixels).save(written, "PNG")
    return written.getvalue()


def pixels_of(file: bytes) -> UInt8:
    with Image.open(io.BytesIO(file)) as image:
        return np.asarray(image.convert("RGB"))

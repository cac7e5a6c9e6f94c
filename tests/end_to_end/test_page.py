"""The page in a real browser, in front of four real services with the embedded model."""

from __future__ import annotations

import base64
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import pytest
from playwright.sync_api import Browser, Locator, expect, sync_playwright

from tests.end_to_end.real_services import addresses, running
from tests.end_to_end.visitor import PATIENCE_MS, Visitor, find_chromium, pixels_of, png, visit
from tests.gateway.running import Stages
from tests.gateway.served import served
from tests.shared_folder import shared_folder
from triptych.cli.processes import Service, free_ports
from triptych.cli.topology import four_services, serve_command
from triptych.contract import UInt8

pytestmark = [
    pytest.mark.timeout(600),
    # Where everything is checked, a browser that could not be installed is a failure.
    pytest.mark.skipif(
        find_chromium() is None and "CI" not in os.environ, reason="there is no Chromium: make chromium installs it"
    ),
]

KEY = "a-key-of-this-test"
PHONE = {"viewport": {"width": 360, "height": 740}, "is_mobile": True, "has_touch": True}
TIMES = "\N{MULTIPLICATION SIGN}"
Visits = Callable[..., Visitor]


@dataclass(frozen=True)
class Gateways:
    """Two gateways in front of the same three stages: one for everybody, one that demands a key."""

    open: str
    locked: str


@pytest.fixture(scope="module")
def gateways() -> Iterator[Gateways]:
    # One size of batches, a picture and its negative prompt: one network a stage is compiled, and the start is short.
    told = {"TRIPTYCH_CACHE_FOLDER": str(shared_folder() / "networks"), "TRIPTYCH_BATCH_SIZES": "2"}
    services = [
        replace(service, environment={**service.environment, **told}) for service in four_services(free_ports(4), "vignette")
    ]
    where = addresses(services[:-1])
    (port,) = free_ports(1)
    environment = {f"TRIPTYCH_{name.upper()}_URL": url for name, url in where.items()} | {"TRIPTYCH_API_KEYS": KEY}
    locked = Service(
        name="locked", port=port, command=serve_command("central", port), ready_path="/health/ready", environment=environment
    )
    with running([*services, locked]):
        yield Gateways(services[-1].url, locked.url)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_chromium())
        yield browser
        browser.close()


@pytest.fixture
def visits(browser: Browser, gateways: Gateways) -> Iterator[Visits]:
    """Opens the page. Afterwards nothing in it may have complained, nor broken its policy."""
    visitors: list[Visitor] = []

    def open_page(*, locked: bool = False, **context: object) -> Visitor:
        visitors.append(visit(browser, gateways.locked if locked else gateways.open, **context))
        return visitors[-1]

    yield open_page
    for visitor in visitors:
        found = (visitor.complaints, visitor.violations())
        visitor.page.context.close()
        assert found == ([], [])


def noise() -> UInt8:
    """A picture that no model would paint: where it comes back unchanged, it was kept."""
    return np.random.default_rng(7).integers(0, 256, (128, 128, 3), np.uint8)


def distance_to_stroke(start: tuple[float, float], end: tuple[float, float]) -> np.ndarray:
    """Of each pixel's centre of a 128x128 picture to a straight stroke, in pixels; the ends are shares of the picture."""
    y, x = np.mgrid[0:128, 0:128] + 0.5
    (x0, y0), (x1, y1) = (128 * np.array(start), 128 * np.array(end))
    along = np.clip(((x - x0) * (x1 - x0) + (y - y0) * (y1 - y0)) / ((x1 - x0) ** 2 + (y1 - y0) ** 2), 0, 1)
    return np.hypot(x - x0 - along * (x1 - x0), y - y0 - along * (y1 - y0))


def test_a_prompt_goes_in_and_a_picture_comes_out(visits: Visits) -> None:
    visitor = visits()
    expect(visitor["sampler"].locator("option")).to_have_text(
        ["ddim", "euler", "euler_ancestral", "dpm++_2m", "dpm++_2m_karras", "unipc", "pndm", "lcm"]
    )
    expect(visitor["num_steps"]).to_have_value("25")
    visitor.asks_for("a red heart on a white background", seed="18446744073709551615")

    expect(visitor["caption-prompt"]).to_have_text("a red heart on a white background")
    facts = f"vignette · seed 18446744073709551615 · ddim, 25 steps · guidance 2 · 128{TIMES}128 · "
    expect(visitor["caption-facts"]).to_have_text(re.compile(re.escape(facts) + r"(\d+ ms|[\d.]+ s)"))
    timings = visitor["timing-list"].inner_text().split("\n")
    assert timings[::2] == ["Queue", "Text encoder", "Diffusion", "Decoder", "Gateway"]
    assert all(re.fullmatch(r"< 1 ms|\d+ ms|[\d.]+ s", duration) for duration in timings[1::2])
    picture = pixels_of(visitor.downloads())
    assert picture.shape == (128, 128, 3)
    middle, corner = picture[56:72, 56:72].mean((0, 1)), picture[:16, :16].mean((0, 1))
    assert middle[0] - middle[2] > 100 and corner.min() > 180


def test_progress_and_previews_come_while_it_works(visits: Visits) -> None:
    visitor = visits()
    visitor.sets(prompt="a purple ring on a gray background", num_steps="80")
    visitor["generate"].click()

    expect(visitor["progress-words"]).to_have_text(re.compile(r"Diffusion · \d+ of 80"), timeout=PATIENCE_MS)
    expect(visitor["live"]).to_have_text("Diffusion")
    expect(visitor["picture"]).to_have_attribute("alt", "A preview", timeout=PATIENCE_MS)
    assert int(visitor["progress"].get_attribute("aria-valuenow") or 0) > 5
    visitor.waits_for_picture()
    expect(visitor["live"]).to_have_text("The picture is done")


def test_what_a_mask_leaves_out_comes_back_to_the_bit(visits: Visits) -> None:
    visitor, stroke = visits(), ((0.3, 0.4), (0.7, 0.6))
    mine = noise()
    visitor.chooses(mine)
    visitor.paints(*stroke)
    visitor.asks_for("a red circle on a blue background", num_steps="8")

    changed = (pixels_of(visitor.downloads()) != mine).any(-1)
    distance, radius = distance_to_stroke(*stroke), 11
    assert not changed[distance > radius + 1].any()
    assert changed[distance < radius - 1].mean() > 0.99
    expect(visitor["caption-facts"]).to_contain_text("strength 1")


def test_eraser_undo_invert_and_clear_change_the_mask(visits: Visits) -> None:
    visitor = visits()
    visitor.chooses(noise())
    visitor["brush-size"].fill("20")
    shares = [0]

    def told() -> int:
        expect(visitor["live"]).not_to_have_text(f"{shares[-1]} % of the picture is painted")
        shares.append(int(visitor["live"].inner_text().split()[0]))
        return shares[-1]

    visitor.paints((0.2, 0.5), (0.8, 0.5))
    painted = told()
    assert 20 < painted < 40
    visitor["eraser"].click()
    visitor.paints((0.2, 0.5), (0.5, 0.5))
    erased = told()
    assert 0 < erased < painted
    visitor["undo"].click()
    assert told() == painted
    visitor["invert"].click()
    assert told() == pytest.approx(100 - painted, abs=1)
    visitor["clear"].click()
    assert told() == 0
    expect(visitor["num_resamples"]).to_be_hidden()


def test_without_a_mask_the_whole_picture_is_changed(visits: Visits) -> None:
    visitor = visits()
    visitor.asks_for("a yellow star on a blue background", num_steps="8", seed="3")
    before = pixels_of(visitor.downloads())
    visitor["use-picture"].click()
    expect(visitor["strength-output"]).to_have_text("80 %")
    visitor["strength"].fill("0.4")
    visitor.asks_for("a yellow star on a blue background", seed="4")
    after = pixels_of(visitor.downloads())

    expect(visitor["caption-facts"]).to_contain_text("strength 0.4")
    difference = np.abs(after.astype(int) - before).mean()
    assert 0 < difference < 30


def test_a_picture_of_another_size_is_fitted(visits: Visits) -> None:
    visitor = visits()
    visitor.chooses(np.zeros((90, 300, 3), np.uint8), "wide.png")
    expect(visitor["source-card"]).to_contain_text(f"wide.png300{TIMES}90, fitted to 128{TIMES}128")
    visitor.asks_for("a red circle on a blue background", num_steps="4")


@pytest.mark.parametrize("way", ["drop", "paste"])
def test_a_picture_is_dropped_or_pasted(visits: Visits, way: str) -> None:
    visitor = visits()
    expect(visitor["sampler"]).not_to_be_empty()
    visitor.page.evaluate(
        """([way, text]) => {
            const bytes = Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
            const carried = new DataTransfer();
            carried.items.add(new File([bytes], "carried.png", { type: "image/png" }));
            const options = { bubbles: true, cancelable: true, dataTransfer: carried, clipboardData: carried };
            document.body.dispatchEvent(way === "drop" ? new DragEvent(way, options) : new ClipboardEvent(way, options));
        }""",
        [way, base64.b64encode(png(noise())).decode()],
    )
    expect(visitor["source-card"]).to_contain_text(f"carried.png128{TIMES}128")
    expect(visitor["easel"]).to_be_focused()


def test_what_is_no_picture_is_refused_in_words(visits: Visits) -> None:
    visitor = visits()
    visitor["file"].set_input_files({"name": "letter.png", "mimeType": "image/png", "buffer": b"Dear Sir"})
    expect(visitor["error"]).to_contain_text("letter.png is not a picture that this browser can read")


def test_cancelling_ends_the_request(visits: Visits, gateways: Gateways) -> None:
    visitor = visits()
    visitor.asks_for("a red heart on a white background", num_steps="4")
    with visitor.page.expect_request(re.compile("/generate$")) as sent:
        visitor.sets(num_steps="150", num_images="8")
        visitor["generate"].click()
    expect(visitor["progress-words"]).to_have_text(re.compile(r"Diffusion · \d+ of 150"), timeout=PATIENCE_MS)
    with visitor.page.expect_response(re.compile("/requests/")) as cancelled:
        visitor["cancel"].click()

    assert cancelled.value.status == 204
    assert cancelled.value.url == f"{gateways.open}/requests/{sent.value.headers['x-request-id']}"
    expect(visitor["live"]).to_have_text("Cancelled")
    expect(visitor["generate"]).to_be_focused()
    expect(visitor["error"]).to_be_hidden()
    # What was there before stands there again.
    expect(visitor["caption-prompt"]).to_have_text("a red heart on a white background")


def test_the_gateways_own_sentence_is_shown(visits: Visits) -> None:
    visitor = visits()
    visitor.sets(prompt="a red heart", num_steps="999")
    visitor["generate"].click()
    expect(visitor["error-words"]).to_have_text('num_steps must be a whole number from 1 to 150, not "999"')
    expect(visitor["num_steps"]).to_have_attribute("aria-invalid", "true")
    visitor.forgive("422")

    visitor.sets(num_steps="4", prompt=" ".join(["heart"] * 60))
    visitor["generate"].click()
    expect(visitor["error-words"]).to_contain_text("tokens")
    expect(visitor["prompt"]).to_have_attribute("aria-invalid", "true")
    expect(visitor["num_steps"]).not_to_have_attribute("aria-invalid", "true")
    visitor.asks_for("a red heart")
    expect(visitor["error"]).to_be_hidden()


def test_a_gateway_that_cannot_be_reached_is_told_in_words(visits: Visits) -> None:
    visitor = visits()
    expect(visitor["sampler"]).not_to_be_empty()
    visitor.page.context.set_offline(True)
    visitor["prompt"].fill("a red heart")
    visitor["generate"].click()
    expect(visitor["error-words"]).to_have_text("The gateway cannot be reached. Is it running, and is this device online?")
    visitor.page.context.set_offline(False)
    visitor.asks_for("a red heart", num_steps="4")
    expect(visitor["error"]).to_be_hidden()
    visitor.forgive("ERR_INTERNET_DISCONNECTED")


def test_a_key_is_asked_for_and_stays_in_the_tab(visits: Visits) -> None:
    visitor = visits(locked=True)
    expect(visitor["key-dialog"]).to_be_visible()
    visitor["key"].fill("wrong")
    visitor.page.keyboard.press("Enter")
    expect(visitor["key-dialog"]).to_contain_text("send a token of this service")
    visitor["key"].fill(KEY)
    visitor.page.keyboard.press("Enter")
    visitor.asks_for("a red heart", num_steps="4")
    visitor.forgive("401")

    assert visitor.page.evaluate("[localStorage.length, document.cookie]") == [0, ""]
    visitor.page.reload()
    expect(visitor["sampler"].locator("option")).to_have_count(8)
    expect(visitor["key-dialog"]).to_be_hidden()


def test_history_brings_picture_and_settings_back(visits: Visits) -> None:
    visitor = visits()
    visitor.asks_for("a red heart on a white background", num_steps="6", seed="7", num_images="2")
    expect(visitor["history"].locator("button")).to_have_count(2)
    visitor["row"].locator("button").nth(1).click()
    second = visitor.downloads()
    visitor.chooses(noise())
    visitor.paints((0.5, 0.5), (0.6, 0.5))
    visitor.asks_for("a yellow star on a blue background", num_steps="5", seed="1", num_images="1")
    edited = visitor.downloads()
    visitor["source-remove"].click()

    visitor["history"].locator("button").nth(2).click()
    expect(visitor["prompt"]).to_have_value("a red heart on a white background")
    expect(visitor["seed"]).to_have_value("8")
    expect(visitor["num_steps"]).to_have_value("6")
    assert visitor.downloads() == second
    visitor["generate"].click()
    expect(visitor["history"].locator("button")).to_have_count(4, timeout=PATIENCE_MS)
    assert visitor.downloads() == second

    visitor["history"].locator("button").nth(1).click()
    expect(visitor["source-name"]).to_have_text("mine.png")
    visitor["generate"].click()
    expect(visitor["history"].locator("button")).to_have_count(5, timeout=PATIENCE_MS)
    assert visitor.downloads() == edited


def focused(visitor: Visitor) -> Locator:
    return visitor.page.locator(":focus")


def tab_to(visitor: Visitor, id_of_element: str) -> None:
    """Goes on by the tab key; whatever is passed must show that it has the focus."""
    for _ in range(60):
        visitor.page.keyboard.press("Tab")
        outline = focused(visitor).evaluate(
            "element => getComputedStyle(element).outlineStyle + getComputedStyle(element).boxShadow"
        )
        assert outline != "nonenone", focused(visitor).evaluate("element => element.outerHTML")
        if focused(visitor).get_attribute("id") == id_of_element:
            return
    raise AssertionError(f"the tab key never comes to {id_of_element}")


def test_everything_is_done_by_keyboard_alone(visits: Visits) -> None:
    visitor = visits()
    keyboard = visitor.page.keyboard
    expect(visitor["sampler"]).not_to_be_empty()
    tab_to(visitor, "prompt")
    keyboard.type("a red circle on a blue background")
    tab_to(visitor, "num_steps")
    keyboard.press("Control+a")
    keyboard.type("8")
    keyboard.press("Control+Enter")
    visitor.waits_for_picture()
    before = pixels_of(visitor.downloads())  # the only click, and none of a person's

    visitor["prompt"].focus()
    tab_to(visitor, "use-picture")
    keyboard.press("Enter")
    expect(visitor["easel"]).to_be_focused()
    expect(visitor["easel-hint"]).to_contain_text("arrows move the brush")
    expect(visitor["easel-hint"].locator(".keys")).to_be_visible()
    for key in ("]", "Space", "Shift+ArrowRight", "ArrowUp", "Space", "x", "Space", "Control+z"):
        keyboard.press(key)
    keyboard.press("Control+Enter")
    expect(visitor["history"].locator("button")).to_have_count(2, timeout=PATIENCE_MS)
    changed = (pixels_of(visitor.downloads()) != before).any(-1)
    assert changed[58:68, 58:72].mean() > 0.9
    assert not changed[distance_to_stroke((0.5, 0.5), (0.501, 0.5)) > 32].any()

    visitor["num_steps"].fill("150")
    keyboard.press("Control+Enter")
    expect(visitor["progress-words"]).to_contain_text("Diffusion", timeout=PATIENCE_MS)
    keyboard.press("Escape")
    expect(visitor["live"]).to_have_text("Cancelled")


def assert_fits(visitor: Visitor) -> None:
    """Nothing is wider than the screen, and nothing that is touched smaller than a fingertip."""
    assert visitor.page.evaluate("document.documentElement.scrollWidth") <= 360
    small = visitor.page.evaluate(
        """() => [...document.querySelectorAll("button, input, select, textarea, summary, a[href]")]
            .filter((element) => element.checkVisibility() && !element.classList.contains("unseen"))
            .map((element) => [element.id || element.textContent, element.getBoundingClientRect()])
            .filter(([, box]) => box.height < 44 || box.width < 44 || box.left < 0 || box.right > 360)
            .map(([name, box]) => `${name}: ${box.width}x${box.height} at ${box.left}`)"""
    )
    assert small == []


def test_it_fits_on_a_phone_and_is_painted_by_touch(visits: Visits) -> None:
    visitor = visits(**PHONE)
    expect(visitor["settings-summary"]).to_contain_text("vignette")
    expect(visitor["seed"]).to_be_hidden()
    assert_fits(visitor)
    visitor.asks_for("a red heart on a white background", num_steps="5", num_images="4")
    assert_fits(visitor)
    before = pixels_of(visitor.downloads())
    visitor["use-picture"].tap()
    swipe(visitor, (0.3, 0.5), (0.7, 0.5))
    assert_fits(visitor)
    visitor["num_steps"].fill("999")
    visitor["generate"].tap()
    expect(visitor["error"]).to_be_visible()
    expect(visitor["error"]).to_be_in_viewport()
    visitor.forgive("422")
    assert_fits(visitor)
    visitor.asks_for("a red heart on a white background", num_steps="5", num_images="1")
    changed = (pixels_of(visitor.downloads()) != before).any(-1)
    assert changed[62:66, 45:83].mean() > 0.9
    assert not changed[:40].any()


def swipe(visitor: Visitor, start: tuple[float, float], end: tuple[float, float]) -> None:
    """A finger that is put down, moved and lifted; playwright itself only taps.

    It rests before it is lifted. Lifted in full motion it would leave a fling, and a tap while that lasts only ends it.
    """
    (x0, y0), (x1, y1) = visitor.place(*start), visitor.place(*end)
    session = visitor.page.context.new_cdp_session(visitor.page)
    session.send("Input.dispatchTouchEvent", {"type": "touchStart", "touchPoints": [{"x": x0, "y": y0}]})
    for share in np.linspace(0.1, 1, 10):
        at = {"x": float(x0 + share * (x1 - x0)), "y": float(y0 + share * (y1 - y0))}
        session.send("Input.dispatchTouchEvent", {"type": "touchMove", "touchPoints": [at]})
    visitor.page.wait_for_timeout(200)
    session.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    expect(visitor["live"]).to_contain_text("of the picture is painted")


CONTRASTS = """() => {
    const rgb = (text) => { const [r, g, b, a = 1] = text.match(/[\\d.]+/g).map(Number); return [r, g, b, a]; };
    const behind = (element) => {
        for (; element; element = element.parentElement) {
            const colour = rgb(getComputedStyle(element).backgroundColor);
            if (colour[3] === 1) return colour;
        }
    };
    const light = (colour) => colour.slice(0, 3)
        .map((value) => value / 255).map((value) => (value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4))
        .reduce((sum, value, place) => sum + value * [0.2126, 0.7152, 0.0722][place], 0);
    const texts = [...document.querySelectorAll("body *")].filter((element) =>
        element.checkVisibility() && !element.disabled && !element.closest(":disabled, .unseen")
        && [...element.childNodes].some((node) => node.nodeType === Node.TEXT_NODE && node.data.trim()));
    return texts.map((element) => {
        const [one, other] = [light(rgb(getComputedStyle(element).color)), light(behind(element))].sort((a, b) => b - a);
        return [element.id || element.textContent.trim(), (one + 0.05) / (other + 0.05)];
    });
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_is_legible_in_light_and_dark(visits: Visits, scheme: str) -> None:
    visitor = visits(color_scheme=scheme)
    visitor.asks_for("a blue fnord", num_steps="4")
    expect(visitor["warnings"]).to_be_visible()
    visitor.sets(num_steps="999")
    visitor["generate"].click()
    expect(visitor["error"]).to_be_visible()
    visitor.forgive("422")
    wall = visitor.page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", wall))) < 150) is (scheme == "dark")
    contrasts = visitor.page.evaluate(CONTRASTS)
    assert len(contrasts) > 25
    assert [(words, round(ratio, 2)) for words, ratio in contrasts if ratio < 4.5] == []


@pytest.mark.parametrize(("preference", "moves"), [("no-preference", True), ("reduce", False)])
def test_who_wants_no_motion_gets_none(visits: Visits, preference: str, moves: bool) -> None:
    visitor = visits(reduced_motion=preference)
    duration = visitor.page.evaluate("getComputedStyle(document.querySelector('.panels i'), '::after').transitionDuration")
    assert (duration != "0s") is moves


def test_other_origins_are_not_spoken_to(visits: Visits, gateways: Gateways) -> None:
    """That the policy is obeyed, and that its violations would be seen above."""
    visitor = visits()
    elsewhere = gateways.locked
    assert visitor.page.evaluate("address => fetch(address).then(() => 'answered', () => 'refused')", elsewhere) == "refused"
    visitor.page.evaluate(
        "address => new Promise((done) => Object.assign(new Image(), {onerror: done, src: address}))", elsewhere
    )
    assert visitor.violations() == ["connect-src", "img-src"]
    assert "innerHTML" in visitor.page.evaluate(
        "() => { try { document.body.innerHTML = '<p>' } catch (error) { return error.message } }"
    )
    visitor.forgive("Content Security Policy")
    visitor.forgive("TrustedHTML")
    visitor.page.evaluate("window.violations = []")


def test_a_model_that_changes_no_pictures_says_so(browser: Browser) -> None:
    """Sizes and tasks are the model's; these stages are fakes, and have no image encoder."""
    with served(Stages().app()) as address:
        visitor = visit(browser, address)
        expect(visitor["size"].locator("option")).to_have_text([f"64 {TIMES} 64", f"96 {TIMES} 64", f"64 {TIMES} 96"])
        expect(visitor["num_steps"]).to_have_value("4")
        expect(visitor["choose"]).to_be_disabled()
        expect(visitor["source-refused"]).to_have_text("fake makes pictures from words only.")
        visitor.page.context.close()

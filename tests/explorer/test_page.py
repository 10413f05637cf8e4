"""The page in a browser: what it shows is what the layer computes, and every way of pointing works."""

import copy
import json
import re

import numpy as np
import pytest
import timm
import torch

from botnet.classification.classifier import open_classifier
from botnet.classification.image_classifier import TorchClassifier
from botnet.cli import main
from botnet.detection.detector import TorchDetector
from botnet.errors import ConfigError, DataError
from botnet.explorer.explore import explore
from botnet.explorer.terms import block_terms
from botnet.layers import MHSA2d
from botnet.visualize.attention import AttentionProbe, probe_attention
from tests.support.classification import picture, weights_file
from tests.support.detection import write_detector
from tests.support.detector import small_detector
from tests.support.explorer import attention_by_terms

pytestmark = pytest.mark.long

MODES = ("both", "content", "position")
SIZE = (100, 60)  # width and height of the image: two fifths of the canvas are padding


def sharpen(network):
    """Attention that is far from even, as that of a trained network."""
    with torch.no_grad():
        for layer in network.modules():
            if isinstance(layer, MHSA2d):
                layer.qkv.weight.mul_(3)
    return network


def expected_weights(network, run):
    """For each block and mode, the layer's own weights (heads, N, N) in float64."""
    with probe_attention(network, "all") as probes:
        run()
    return [
        {
            mode: attention_by_terms(copy.deepcopy(probe.layer).double(), probe.map.double(), mode)
            for mode in MODES
        }
        for probe in probes
    ]


@pytest.fixture(scope="module")
def detector():
    network = sharpen(small_detector(num_classes=2, canvas=128).eval())
    return TorchDetector(network, ["a", "<b>&"], [1, 2], 128)


@pytest.fixture(scope="module")
def written(detector, tmp_path_factory):
    """The page of a detector, its content, and what it has to show."""
    image = picture(1, SIZE)
    scores = detector.predict(image, threshold=0).confidence
    page = tmp_path_factory.mktemp("page") / "page.html"
    explore(detector, image, page, threshold=float(scores[3]), name="a <b>model</b>")
    (content,) = re.findall(r'id="content">(.*?)</script>', page.read_text())
    expected = expected_weights(detector.network, lambda: detector.detect([detector.prepare(image)]))
    return page, json.loads(content), expected


def opacities_of(selector):
    """JavaScript for the opacity of each cell of the maps that are drawn, (maps, cells)."""
    return (
        f"[...document.querySelectorAll({json.dumps(selector)})].map(c => [...c.getContext('2d')"
        ".getImageData(0, 0, c.width, c.height).data].filter((_, i) => i % 4 === 3))"
    )


class Page:
    """The page in the browser, and the pointer on it."""

    def __init__(self, browser, path):
        self.browser = browser
        self.resize(1280, 900)
        browser.get(path.as_uri())
        self.stage = browser.find_element("id", "stage")
        self.settle()

    def resize(self, width, height, scheme="light"):
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        features = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        self.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", features)

    def settle(self):
        """Wait until everything is computed and drawn."""
        from selenium.webdriver.support.ui import WebDriverWait

        WebDriverWait(self.browser, 30).until(lambda _: self.stage.get_attribute("aria-busy") == "false")

    def run(self, code, *arguments):
        return self.browser.execute_script(code, *arguments)

    def text(self, name):
        return self.browser.find_element("id", name).text

    def point(self, x, y, click=False):
        """Move the mouse to a place, as fractions of the canvas."""
        from selenium.webdriver import ActionChains

        width, height = self.stage.size["width"], self.stage.size["height"]
        chain = ActionChains(self.browser, duration=0)
        chain.move_to_element_with_offset(self.stage, (x - 0.5) * width, (y - 0.5) * height)
        (chain.click() if click else chain).perform()
        self.settle()

    def touch(self, kind, *place):
        box = self.run("return stage.getBoundingClientRect().toJSON()")
        points = [{"x": box["x"] + x * box["width"], "y": box["y"] + y * box["height"]} for x, y in place]
        self.browser.execute_cdp_cmd("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
        self.settle()

    def press(self, *keys):
        from selenium.webdriver import ActionChains

        ActionChains(self.browser, duration=0).send_keys(*keys).perform()
        self.settle()

    def opacities(self, selector):
        """Opacity of each cell of the maps that are drawn, (maps, cells)."""
        return np.array(self.run(f"return {opacities_of(selector)}"))

    def check(self, blocks, large=(0, 0)):
        """Compare all maps with weights (heads, N) of the blocks, and the words with the large one's."""
        for number, weights in enumerate(blocks, start=1):
            drawn = self.opacities(f"#blocks section:nth-child({number}) canvas")
            shown = 0.85 * 255 * weights / weights.max(-1, keepdims=True)
            np.testing.assert_allclose(drawn, shown, atol=1.01)
            captions = self.browser.find_elements("css selector", f"section:nth-child({number}) .caption")
            assert [caption.text.split("\n")[0] for caption in captions] == [
                f"head {head + 1}" for head in range(len(weights))
            ]
            for caption, own in zip(captions, weights, strict=True):
                assert number_in(caption.text.split("\n")[1]) == pytest.approx(own.max() * len(own), rel=5e-3)
        own = blocks[large[0]][large[1]]
        shown = 0.85 * 255 * own / own.max()
        np.testing.assert_allclose(self.opacities("#stage canvas")[0], shown, atol=1.01)
        assert number_in(self.text("most")) == pytest.approx(own.max() * len(own), rel=5e-3)
        share = re.search(r"([\d.]+) % of its attention goes to the strongest cell", self.text("how"))
        assert float(share[1]) == pytest.approx(100 * own.max(), rel=0.06)


def number_in(text):
    return float(re.match(r"[\d.,]+", text)[0].replace(",", ""))


def at_cell(expected, block_content, x, y, mode="both"):
    """The layers' weights (heads, N) of the cells at a place."""
    return [
        weights[mode][:, int(y * block["height"]) * block["width"] + int(x * block["width"])].numpy()
        for weights, block in zip(expected, block_content, strict=True)
    ]


def in_box(expected, block_content, box, mode="both"):
    """The layers' mean weights over the cells with their centres in a box, or of the one at its centre."""
    means = []
    for weights, block in zip(expected, block_content, strict=True):
        inside = []
        for low, high, side in ((box[1], box[3], block["height"]), (box[0], box[2], block["width"])):
            centres = (np.arange(side) + 0.5) / side
            found = np.flatnonzero((centres >= low) & (centres <= high))
            inside.append(found if len(found) else np.array([int((low + high) / 2 * side)]))
        cells = (inside[0][:, None] * block["width"] + inside[1]).ravel()
        means.append(weights[mode][:, cells].mean(1).numpy())
    return means


@pytest.fixture
def shown(browser, written):
    """The page as it opens; whatever a test does, the console stays empty."""
    page = Page(browser, written[0])
    yield page
    assert browser.get_log("browser") == []


def test_the_browser_computes_the_weights_of_the_layer(shown, written):
    _, content, expected = written
    for index, (block, weights) in enumerate(zip(content["blocks"], expected, strict=True)):
        cells = [0, block["height"] * block["width"] // 2, block["height"] * block["width"] - 1]
        for mode in MODES:
            for cell in cells:
                call = (
                    "return Array.from(attention(content.blocks[arguments[0]], arguments[1], [arguments[2]]))"
                )
                found = np.reshape(shown.run(call, index, mode, cell), (block["heads"], -1))
                # The page's terms come from a network in float32.
                np.testing.assert_allclose(
                    found, weights[mode][:, cell], rtol=np.expm1(2 * block["rounding"]) + 1e-4
                )
    assert max(block["rounding"] for block in content["blocks"]) < 0.02
    assert max(float(weights["both"].max()) * weights["both"].shape[-1] for weights in expected) > 3


@pytest.mark.parametrize("size", [(3, 8), (5, 2), (1, 1)])
def test_the_browser_computes_maps_that_are_not_square(size, shown):
    torch.manual_seed(0)
    layer = MHSA2d(12, 3, feat_size=(4, 4), qkv_std=0.5).double()
    x = torch.randn(1, 12, *size, dtype=torch.float64)
    probe = AttentionProbe(layer, "layer4.0")
    probe.record(layer, (x,))
    cells = torch.arange(size[0] * size[1])
    call = "return Array.from(attention(prepare(arguments[0]), arguments[1], arguments[2]))"
    for mode in MODES:
        expected = attention_by_terms(layer, x, mode)
        for some in (cells[:1], cells[-1:], cells[::2]):  # the mean over several
            block = block_terms(probe)
            found = np.reshape(shown.run(call, block, mode, some.tolist()), (3, -1))
            bound = np.expm1(2 * block["rounding"])
            np.testing.assert_allclose(found, expected[:, some].mean(1), rtol=bound)


def test_the_mouse_chooses_the_cell(shown, written):
    _, content, expected = written
    before = shown.opacities("#stage canvas")
    for x, y in ((0.2, 0.3), (0.7, 0.45), (0.99, 0.99)):  # the last is padding
        shown.point(x, y)
        shown.check(at_cell(expected, content["blocks"], x, y))
        assert shown.text("where") == f"Chosen cell: row {int(y * 8) + 1}, column {int(x * 8) + 1} of 8 × 8."
        after = shown.opacities("#stage canvas")
        assert (before != after).any()
        before = after
    # In the padding there is no object.
    shown.point(0.2, 0.9, click=True)
    shown.point(0.7, 0.45)
    shown.check(at_cell(expected, content["blocks"], 0.2, 0.9))  # held
    assert shown.text("hint").startswith("Held.")
    shown.point(0.2, 0.9, click=True)
    shown.point(0.7, 0.45)
    shown.check(at_cell(expected, content["blocks"], 0.7, 0.45))


def test_padding_is_named(shown, written):
    _, content, expected = written
    shown.point(0.2, 0.3)
    own = at_cell(expected, content["blocks"], 0.2, 0.3)[0][0].reshape(8, 8)
    rows = np.arange(8) / 8 >= content["shown"][0]  # 77 of 128 pixels
    assert rows.sum() == 3
    share = re.search(r"([\d.]+) % falls on the hatched padding", shown.text("how"))
    assert float(share[1]) == pytest.approx(100 * own[rows].sum(), rel=0.06)


def test_a_detection_shows_where_its_own_cells_look(shown, written):
    _, content, expected = written
    objects = content["objects"]
    assert len(objects) == 4
    x, y = np.reshape(objects[0]["box"], (2, 2)).mean(0).tolist()
    holding = [
        (np.prod(np.subtract(o["box"][2:], o["box"][:2])), o)
        for o in objects
        if o["box"][0] <= x <= o["box"][2] and o["box"][1] <= y <= o["box"][3]
    ]
    smallest = min(holding, key=lambda pair: pair[0])[1]
    shown.point(x, y, click=True)
    shown.check(in_box(expected, content["blocks"], smallest["box"]))
    assert shown.text("where").startswith(f"{smallest['name']} {smallest['score']:.2f}: mean over the ")
    for number, chip in enumerate(shown.browser.find_elements("css selector", ".chips button")):
        chip.click()
        shown.settle()
        assert chip.get_attribute("aria-pressed") == "true"
        shown.check(in_box(expected, content["blocks"], objects[number]["box"]))
    shown.point(0.2, 0.3)
    shown.check(in_box(expected, content["blocks"], objects[-1]["box"]))  # held
    shown.press("\ue00c")  # Escape
    shown.point(0.2, 0.35)
    shown.check(at_cell(expected, content["blocks"], 0.2, 0.35))


def test_the_keyboard_does_all_of_it(shown, written):
    _, content, expected = written
    shown.point(0.2, 0.3)
    shown.run("stage.focus()")
    right, down, enter, escape, tab = "\ue014", "\ue015", "\ue007", "\ue00c", "\ue004"
    shown.press(right, right, down)
    assert shown.text("where") == "Chosen cell: row 4, column 4 of 8 × 8."
    shown.check(at_cell(expected, content["blocks"], 3.5 / 8, 3.5 / 8))
    shown.press(*[right] * 9)
    assert "column 8 of" in shown.text("where")
    shown.press(enter)  # lets go of the cell, or takes the object around it
    shown.press(escape)
    assert shown.text("hint").startswith("Click")
    shown.press(tab, enter)  # the first detection's button
    shown.check(in_box(expected, content["blocks"], content["objects"][0]["box"]))


def test_a_finger_chooses_too(shown, written):
    _, content, expected = written
    shown.touch("touchStart", (0.5, 0.5))
    shown.touch("touchMove", (0.2, 0.3))
    shown.check(at_cell(expected, content["blocks"], 0.2, 0.3))
    shown.touch("touchMove", (0.7, 0.45))
    shown.touch("touchEnd")
    shown.check(at_cell(expected, content["blocks"], 0.7, 0.45))
    box = content["objects"][0]["box"]
    shown.touch("touchStart", tuple(np.reshape(box, (2, 2)).mean(0).tolist()))
    shown.touch("touchEnd")
    assert "mean over" in shown.text("where")


@pytest.mark.parametrize("mode", MODES[1:])
def test_one_term_alone(mode, shown, written):
    _, content, expected = written
    shown.browser.find_element("css selector", f"label:has([value={mode}])").click()
    shown.point(0.2, 0.3)
    shown.check(at_cell(expected, content["blocks"], 0.2, 0.3, mode))
    assert f"{mode} alone" in shown.text("how")


def test_another_head_is_shown_large(shown, written):
    _, content, expected = written
    shown.point(0.2, 0.3)
    shown.browser.find_elements("css selector", "section:nth-child(2) button")[1].click()
    shown.settle()
    shown.check(at_cell(expected, content["blocks"], 0.2, 0.3), large=(1, 1))
    assert shown.text("how").startswith("Head 2 of backbone.layer4.1")
    shown.point(0.2, 0.3)
    assert shown.text("where").endswith("of 4 × 4.")


# The text of an element against the first opaque background behind it, as WCAG 2 has it.
CONTRASTS = """
const channels = colour => colour.match(/[\\d.]+/g).map(Number);
const luminance = colour => channels(colour).slice(0, 3).map(c => c / 255)
  .map(c => c <= .04045 ? c / 12.92 : ((c + .055) / 1.055) ** 2.4)
  .reduce((sum, c, i) => sum + c * [.2126, .7152, .0722][i], 0);
const behind = e => {
  for (; e; e = e.parentElement) {
    const back = channels(getComputedStyle(e).backgroundColor);
    if (back.length === 3 || back[3] === 1) return getComputedStyle(e).backgroundColor;
  }
};
return [...document.querySelectorAll("body *")].filter(e => e.checkVisibility() && e.tagName !== "SCRIPT"
    && [...e.childNodes].some(n => n.nodeType === 3 && n.data.trim())).map(e => {
  const both = [luminance(getComputedStyle(e).color), luminance(behind(e))].sort((a, b) => b - a);
  return [e.textContent.trim(), (both[0] + .05) / (both[1] + .05)];
});
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_it_fits_and_can_be_read_and_named(width, scheme, shown):
    shown.resize(width, 844, scheme)
    assert shown.run("return document.documentElement.scrollWidth") <= width
    contrasts = shown.run(CONTRASTS)
    assert len(contrasts) > 20
    assert [pair for pair in contrasts if pair[1] < 4.5] == []
    for element in shown.browser.find_elements("css selector", "button, input, [tabindex]"):
        assert element.accessible_name
        element_size = element.size
        assert element.get_attribute("type") == "radio" or min(element_size.values()) >= 24
    # The name of an object reaches towards the middle, where it is not cut off.
    ends = shown.run(
        "return content.objects.map(({ box, outline, tag }) => {"
        "const end = box[0] + box[2] > 1 ? 'right' : 'left';"
        "return [end, tag.getBoundingClientRect()[end] - outline.getBoundingClientRect()[end]]; })"
    )
    assert "right" in dict(ends)
    assert max(abs(apart) for _, apart in ends) < 1
    # Focus is drawn.
    shown.run("document.querySelector('.heads button').focus({focusVisible: true})")
    assert shown.run("return getComputedStyle(document.activeElement).outlineStyle") == "solid"


def test_what_changed_is_spoken_once_it_rests(shown):
    from selenium.webdriver.support.ui import WebDriverWait

    shown.point(0.7, 0.45)
    spoken = shown.browser.find_element("id", "spoken")
    wanted = shown.run("return `${where.textContent} ${how.textContent}`")
    WebDriverWait(shown.browser, 10).until(lambda _: spoken.get_attribute("textContent") == wanted)
    assert spoken.get_attribute("aria-live") == "polite"


def test_nothing_is_loaded_and_names_are_text(shown, written):
    loaded = shown.run("return performance.getEntriesByType('resource').map(entry => entry.name)")
    assert [name for name in loaded if not name.startswith("data:")] == []
    html = written[0].read_text()
    assert not re.search(r"(?:src|href)=\"(?!data:)|https?://", html)
    assert "<b>model</b>" not in html
    assert "a <b>model</b>" in shown.browser.find_element("css selector", "header").text
    names = {
        tag.text.rpartition(" ")[0] for tag in shown.browser.find_elements("css selector", ".chips button")
    }
    assert names <= {"a", "<b>&"}
    assert "rounded to 16 bits" in shown.text("notes")


def test_firefox_shows_the_same(firefox, written):
    path, content, expected = written
    firefox.open(path.as_uri())
    settled = (
        "new Promise(done => { const look = () => "
        "stage.getAttribute('aria-busy') === 'false' ? done(true) : setTimeout(look, 10); look(); })"
    )
    stage = firefox.run("stage.getBoundingClientRect()")
    drawn = []
    for x, y in ((0.2, 0.3), (0.7, 0.45)):
        firefox.move_mouse(stage["x"] + x * stage["width"], stage["y"] + y * stage["height"])
        assert firefox.run(settled)
        own = at_cell(expected, content["blocks"], x, y)[0][0]
        drawn.append(np.array(firefox.run(opacities_of("#stage canvas"))[0]))
        np.testing.assert_allclose(drawn[-1], 0.85 * 255 * own / own.max(), atol=1.01)
        assert number_in(firefox.run("most.textContent")) == pytest.approx(own.max() * len(own), rel=5e-3)
    assert (drawn[0] != drawn[1]).any()
    assert firefox.console == []


@pytest.fixture
def classifier(tmp_path):
    torch.manual_seed(0)
    weights = tmp_path / "w.pth"
    torch.save(timm.create_model("botnet_tiny", num_classes=3).state_dict(), weights)
    classifier = TorchClassifier(open_classifier("botnet_tiny", weights, size=96, device="cpu"))
    sharpen(classifier.network)
    return classifier


def open_page(browser, classifier, image, path):
    """The page of a classifier, its content, and what it has to show."""
    page = Page(browser, explore(classifier, image, path))
    (content,) = re.findall(r'id="content">(.*?)</script>', path.read_text())
    expected = expected_weights(classifier.network, lambda: classifier.predict(image))
    return page, json.loads(content), expected


def test_a_classifier_names_classes(browser, classifier, tmp_path):
    image = picture(2, SIZE)
    page, content, expected = open_page(browser, classifier, image, tmp_path / "page.html")
    page.point(0.2, 0.3)
    page.check(at_cell(expected, content["blocks"], 0.2, 0.3))
    found = classifier.predict(image)
    for index, score in zip(found.class_id, found.confidence, strict=True):
        assert f"{classifier.class_names[index]} {score:.2f}" in page.text("found")
    assert "padding" not in page.text("how")
    assert browser.get_log("browser") == []


def test_a_term_that_the_layer_lacks_cannot_be_chosen(browser, classifier, tmp_path):
    for layer in classifier.network.modules():
        if isinstance(layer, MHSA2d):
            layer.content = False
    page, content, expected = open_page(browser, classifier, picture(2, SIZE), tmp_path / "page.html")
    page.point(0.2, 0.3)
    page.check(at_cell(expected, content["blocks"], 0.2, 0.3))
    enabled = {
        element.get_attribute("value"): element.is_enabled()
        for element in browser.find_elements("css selector", "[name=mode]")
    }
    assert enabled == {"both": True, "content": False, "position": True}


def test_the_command(tmp_path, capsys):
    checkpoint, image = write_detector(tmp_path / "last.ckpt"), tmp_path / "a.jpg"
    picture(1, SIZE).save(image)
    call = ["explore", str(checkpoint), str(image), "--device", "cpu", "--output"]
    assert main([*call, str(tmp_path / "page.html"), "--score", "1"]) == 0
    assert f"{tmp_path / 'page.html'}, " in capsys.readouterr().out
    html = (tmp_path / "page.html").read_text()
    assert "last.ckpt" in html
    assert "a.jpg" in html
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jpg", "last.ckpt", "page.html"]
    assert main([*call, str(tmp_path / "none" / "page.html")]) == 2
    assert "give a file in a folder that exists" in capsys.readouterr().err
    assert main([*call, str(tmp_path / "page.html"), "--crop", "1"]) == 2
    assert "--crop is for classifiers" in capsys.readouterr().err
    image.write_bytes(b"no image")
    assert main([*call, str(tmp_path / "other.html")]) == 2
    assert "a.jpg: cannot be decoded" in capsys.readouterr().err
    assert not (tmp_path / "other.html").exists()


def test_a_page_that_cannot_be_written_leaves_nothing(detector, tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(28, "No space left on device")

    page = tmp_path / "page.html"
    page.write_text("an older page")
    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(ConfigError, match=r"page\.html: cannot be written \(No space left"):
        explore(detector, picture(1), page)
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]
    assert page.read_text() == "an older page"


def test_what_cannot_be_explored_is_refused(detector, tmp_path):
    page = tmp_path / "page.html"
    weights = weights_file(tmp_path / "w.pth")
    plain = TorchClassifier(open_classifier("mobilenetv3_small_050", weights, device="cpu"))
    with pytest.raises(ConfigError, match="no BoT block, so there is no attention to draw"):
        explore(plain, picture(1), page)
    with pytest.raises(ConfigError, match="threshold 2: give a confidence from 0 to 1"):
        explore(detector, picture(1), page, threshold=2)
    with pytest.raises(DataError, match="no such image"):
        explore(detector, tmp_path / "none.jpg", page)
    assert not page.exists()

"""The page as people use it: mouse, keyboard alone, a phone's width, a broken file; and afterwards nothing is left of it."""

import signal
import zipfile

import pytest

from fairanon.imaging import write_image
from tests.anonymizer.scenes import scene
from tests.browser import CHROMIUM, DRIVER, Page, driven, hosts_asked, start

pytest.importorskip("gradio")
pytest.importorskip("selenium")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None or DRIVER is None, reason="needs chromium and chromium-driver"),
]


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    root = tmp_path_factory.mktemp("shm")
    process, address = start(root)
    yield root, address
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 143 and not list(root.glob("fairanon-app-*"))


@pytest.fixture(scope="module")
def brought(tmp_path_factory):
    folder = tmp_path_factory.mktemp("brought")
    write_image(scene(0, 2), folder / "two.png")
    write_image(scene(1, 3), folder / "three.png")
    (folder / "broken.png").write_bytes(b"this is no photograph")
    (folder / "text.png").write_bytes(b"nor this")
    with zipfile.ZipFile(folder / "both.zip", "w") as archive:
        archive.write(folder / "three.png", "album/three.png")
    return folder


@pytest.fixture
def page(served, tmp_path):
    driver = driven(tmp_path / "profile")
    yield Page(driver, served[1])
    driver.quit()


def test_photographs_are_hidden_a_face_stays_and_all_is_forgotten(page, served, brought):
    root, _ = served
    page.bring(brought / "two.png", brought / "broken.png")
    page.press("Hide and test")
    page.until(lambda: "1 FILE TO BE LOOKED AT" in page.text())
    assert "1 of 2 photographs may be published; 2 of 2 faces hidden." in page.text()
    page.until(lambda: "broken.png: cannot be read" in page.text())
    assert page.find("input[aria-label=photograph]")[0].get_attribute("value") == "two.png"
    boxes = page.find("input[type=checkbox]")
    assert len(boxes) == 2 and not any(box.is_selected() for box in boxes)
    from fairanon.anonymizer.find import Finder
    from fairanon.evaluators import TinyDetector

    found = Finder([TinyDetector()]).find(scene(0, 2)).boxes[0].tolist()
    image = page.until(lambda: page.find("img[alt='the original with a box round each face']"))[0]
    page.click_on(image, (found[0] + found[2]) / 2 / 192, (found[1] + found[3]) / 2 / 128)
    page.until(lambda: sum(box.is_selected() for box in page.find("input[type=checkbox]")) == 1)
    page.press("Hide and test again")
    page.until(lambda: "kept as asked" in page.text())
    assert "1 face stays visible in the published files" in page.text()
    secret = (brought / "two.png").read_bytes()
    assert any(path.is_file() and path.read_bytes() == secret for path in root.rglob("*"))
    page.press("Forget everything now")
    page.until(lambda: "Everything is forgotten" in page.text())
    assert not [path for path in root.glob("fairanon-app-*/**/*") if path.is_file() and path.name != ".lock"]
    page.press("Hide and test")
    page.until(lambda: "There is nothing to hide yet" in page.text())
    assert hosts_asked(page.driver) == {"127.0.0.1"}


def test_a_box_is_drawn_by_two_clicks(page, brought):
    page.bring(brought / "both.zip")
    page.press("Hide and test")
    page.until(lambda: "3 of 3 faces hidden" in page.text() and "READY" in page.text())
    original = "img[alt='the original with a box round each face']"
    before = page.find(original)[0].get_attribute("src")
    page.click_on(page.find(original)[0], 0.01, 0.01)
    page.until(lambda: page.find(original)[0].get_attribute("src") != before)  # the corner is shown
    before = page.find(original)[0].get_attribute("src")
    page.click_on(page.find(original)[0], 0.2, 0.25)
    page.until(lambda: page.find(original)[0].get_attribute("src") != before)
    page.press("Hide and test again")
    page.until(lambda: "4 of 4 faces hidden" in page.text() and "face 4" in page.text())


def test_what_cannot_be_done_is_a_sentence(page, brought):
    page.bring(brought / "text.png")
    page.press("Hide and test")
    page.until(lambda: "1 FILE TO BE LOOKED AT" in page.text())
    assert "0 of 1 photographs may be published" in page.text() and "Traceback" not in page.text()
    (who,) = [one for one in page.find("label") if one.text == "everybody but these people"]
    who.click()
    page.press("Hide and test")
    page.until(lambda: "Say whom you mean" in page.text())


def test_the_keyboard_alone_is_enough(page, brought):
    from selenium.webdriver import ActionChains, Keys

    page.bring(brought / "two.png")  # a file dialogue is the system's own

    def go_to(wanted, most=60):
        for _ in range(most):
            ActionChains(page.driver).send_keys(Keys.TAB).perform()
            active = page.driver.switch_to.active_element
            if wanted(active):
                return active
        raise AssertionError("the keyboard does not come there")

    go_to(lambda one: one.get_attribute("value") == "pixelate").send_keys(Keys.SPACE)
    page.until(lambda: "strength" in page.text())
    go_to(lambda one: one.text == "Hide and test").send_keys(Keys.ENTER)
    page.until(lambda: "ONLY OBSCURED" in page.text())
    go_to(lambda one: one.get_attribute("type") == "checkbox").send_keys(Keys.SPACE)
    page.until(lambda: sum(box.is_selected() for box in page.find("input[type=checkbox]")) == 1)
    go_to(lambda one: one.text == "Hide and test again").send_keys(Keys.ENTER)
    page.until(lambda: "kept as asked" in page.text())


def test_new_faces_and_runs(page):
    page.find("button[role=tab]")[1].click()
    page.until(lambda: page.button("Draw"))
    page.press("Draw")
    page.until(lambda: len([one for one in page.find("img") if one.is_displayed()]) >= 12, seconds=240)
    assert "NOT DONE" not in page.text()
    page.find("button[role=tab]")[2].click()
    page.until(lambda: "runs" in page.text())
    page.find("button[role=tab]")[3].click()
    page.until(lambda: page.button("Draw and count"))
    page.press("Draw and count")
    page.until(lambda: "may be at" in page.text() or "leans to" in page.text() or "lean to" in page.text(), seconds=240)
    page.press("Stop")
    assert "NOT DONE" not in page.text()


def test_a_phone_is_wide_enough(served, brought, tmp_path):
    driver = driven(tmp_path / "profile", width=400)
    try:
        page = Page(driver, served[1])
        page.bring(brought / "two.png")
        page.press("Hide and test")
        page.until(lambda: "READY" in page.text())
        width, inner = page.driver.execute_script("return [document.documentElement.scrollWidth, innerWidth]")
        assert width <= inner + 1
    finally:
        driver.quit()

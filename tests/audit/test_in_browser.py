"""The audit's pages in a real Chromium: the first screen answers, nothing scrolls sideways, labels are given by keys."""

import time

import pytest

from fairanon.cli.main import main
from tests.audit.test_audit import PROMPTS, TINY, lay, portraits
from tests.browser import CHROMIUM, DRIVER, driven, first_screen, hosts_asked

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Debian's package chromium")


@pytest.fixture
def page(tmp_path):
    folder = lay(
        tmp_path / "images",
        {prompt: portraits(20, men, k) for k, (prompt, men) in enumerate(zip(PROMPTS, (19, 2), strict=True))},
    )
    assert (
        main(["audit", str(folder), *TINY, "--attributes", "gender", "--label", "4", "--out", str(tmp_path / "out")])
        == 0
    )
    return tmp_path / "out" / "report.html"


def test_who_is_shown(page):
    seen = first_screen(page)
    assert (
        "How the model 'images' portrays people" in seen and "Of 2 prompts 1 leans to male, 1 leans to female" in seen
    )
    assert "The farthest is 'a photo of a doctor': male in 19 of 20 images as judged" in seen
    assert "gender: share that looks female" in seen and "a photo of a nurse" in seen
    assert "WIDER" not in seen and "WIDER" not in first_screen(page, width=500)


@pytest.mark.slow
@pytest.mark.skipif(DRIVER is None, reason="needs chromium-driver")
def test_labels_are_given_by_keys_and_nothing_leaves_the_machine(page, tmp_path):
    by = pytest.importorskip("selenium.webdriver.common.by").By
    keys = pytest.importorskip("selenium.webdriver.common.keys").Keys
    driver = driven(tmp_path / "profile", width=400)
    try:
        driver.get((page.parent / "label" / "index.html").as_uri())
        body = driver.find_element(by.TAG_NAME, "body")
        assert driver.find_element(by.ID, "progress").text == "0 of 4 answered"
        body.send_keys("1", "2", "9", keys.BACKSPACE, "0", "1", "1")
        assert driver.find_element(by.ID, "progress").text == "all 4 answered: save them"
        rows = driver.execute_script("return table()").strip().split("\n")
        assert rows[0] == "file,attribute,class" and len(rows) == 4, "what nobody can tell is left out"
        assert [row.rpartition(",")[2] for row in rows[1:]] == ["female", "female", "female"]
        time.sleep(1)  # a browser writes what a page stores a moment later
        driver.refresh()
        assert driver.find_element(by.ID, "progress").text == "all 4 answered: save them"
        assert hosts_asked(driver) <= {"None"}
        (tmp_path / "labels.csv").write_text("\n".join(rows))
    finally:
        driver.quit()
    words = ["audit", str(tmp_path / "images"), *TINY, "--attributes", "gender", "--out", str(page.parent)]
    assert main([*words, "--labels", str(tmp_path / "labels.csv")]) == 0

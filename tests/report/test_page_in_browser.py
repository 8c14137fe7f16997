"""The report in Chromium: values under the pointer, a range that is dragged; and the page that grows to its end."""

import threading

import pytest

from tests.report.test_watching import ROW, begin, run, train  # noqa: F401
from tests.serving.chromium import PROGRAM, browser, shown
from tpullm.report.watching import Pages, Server, address, listen
from tpullm.system import storage

pytestmark = [pytest.mark.ci, pytest.mark.skipif(not PROGRAM, reason="there is no Chromium on this machine")]

# A pointer over the first chart, at a share of its width.
POINTER = """((type, share) => {
  const plot = document.querySelector('.plot'), box = plot.getBoundingClientRect();
  plot.dispatchEvent(new PointerEvent(type, {
    bubbles: true, button: 0, clientX: box.left + share * box.width, clientY: box.top + box.height / 2,
  }));
})"""
FIRST_TICK = "document.querySelector('.plot').querySelector('.tick.x').textContent"
MIDDLE = {"step": 20, "tokens": 250, "loss": 2.0}
LAST = {"step": 40, "tokens": 400, "loss": 1.0}


@pytest.fixture
def page(tmp_path):
    with browser(tmp_path / "browser") as found:
        yield found
        assert found.faults == []


@pytest.fixture
def address_of_run(run):  # noqa: F811
    begin(run)
    train(run, ROW, MIDDLE, LAST)
    with listen(0) as listener:
        server = Server(listener, Pages([str(run)]))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield address(listener)
        server.shutdown()


def test_a_chart_says_its_values_and_shows_a_range_of_them(page, address_of_run):
    page.open(address_of_run)
    page.value(f"{POINTER}('pointermove', 0.52)")
    assert shown(page, ".tip b") == ["250 tokens read in training"]
    assert shown(page, ".tip div")[0] == "training 2"
    page.value(f"{POINTER}('pointerdown', 0.5); {POINTER}('pointermove', 0.9); {POINTER}('pointerup', 1.0)")
    assert page.value(FIRST_TICK) == "250" and len(shown(page, "button.whole")) == 1
    left, _, width, _ = page.value("document.querySelector('.plot svg').getAttribute('viewBox').split(' ').map(Number)")
    assert (left, width) == (500, 500)
    page.value("document.querySelector('button.whole').click()")
    assert page.value(FIRST_TICK) == "100" and shown(page, "button.whole") == []
    page.value("document.body.dispatchEvent(new PointerEvent('pointermove', { bubbles: true }))")
    assert shown(page, ".tip") == []


def test_a_page_grows_and_becomes_the_report(page, run, address_of_run):  # noqa: F811
    page.open(address_of_run)
    page.value("window.same = true; document.querySelector('#recipe details').open = true")
    assert "Step 40 of 40" in shown(page, "header")[0]
    train(run, ROW, {"step": 30, "tokens": 300, "loss": 1.5})
    page.wait("document.querySelector('header').textContent.includes('Step 30 of 40')")
    assert page.value("window.same && document.querySelector('#recipe details').open"), "only what changed is replaced"
    for stage in ("pretrain", "evaluate"):
        storage.write_json(run / stage / "manifest.json", {"seconds": 3.0})
    page.wait("!window.same && document.readyState === 'complete' && !('live' in document.body.dataset)")

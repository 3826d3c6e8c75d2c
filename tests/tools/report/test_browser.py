"""The report in a real browser: it draws, it can be walked through, and nothing in it runs or reaches out."""

import pytest
from report_runs import sample

from vr1_jax.tools.report.write import write_report

HOSTILE = (
    "</script><script>window.owned = 1</script>",
    '<img src=x onerror="window.owned = 1">',
    "<!-- <script> ]]> &lt;b&gt; {{7*7}} ${window.owned = 1} `",
    "\u202eright to left\u202c \u0000\u0007\u001b[31m \u200b\ufeff\u2028",
    "🙂🏳️‍🌈 e\u0301 \U000e0041 日本語 العربية",
)


def open_report(browser, path, **how):
    browser.open(path, **how)
    if browser.evaluate("!document.body.classList.contains('without-answers')"):
        browser.wait_for("document.body.dataset.shown !== undefined")


def check_quiet(browser, path):
    assert browser.errors == []
    assert {url for url in browser.requests if not url.startswith("data:image/webp;")} <= {path.as_uri()}


def text(browser, selector):
    return browser.evaluate(f"document.querySelector({selector!r}).textContent")


def test_it_draws_and_reaches_nothing(browser, report):
    open_report(browser, report)
    lengths = browser.evaluate("[...document.querySelectorAll('.plot path.mean')].map(p => p.getTotalLength())")
    assert len(lengths) > 10
    assert all(length > 50 for length in lengths if length)
    assert browser.evaluate("document.querySelectorAll('.plot path.area').length") == 3
    assert browser.evaluate("document.querySelectorAll('.plot .error').length") == 2  # held-out, twice
    assert browser.evaluate("document.querySelectorAll('.finding').length") == 4
    assert "12 of 12" in text(browser, "#facts")
    inked = "document.querySelector('#map canvas').getContext('2d').getImageData(90, 5, 1, 1).data[3]"
    assert browser.evaluate(inked) == 255
    check_quiet(browser, report)


def test_walking_through_steps_and_questions(browser, report):
    open_report(browser, report, fragment="#step=4&prompt=2")
    assert browser.evaluate("document.body.dataset.shown") == "4/1"
    assert "blink in clip 5?" in text(browser, ".problem")
    browser.press("ArrowRight")
    browser.wait_for("document.body.dataset.shown === '5/1'")
    browser.press("k")
    browser.wait_for("document.body.dataset.shown === '5/0'")
    assert browser.evaluate("location.hash") == "#step=5&prompt=1"
    browser.evaluate("document.querySelectorAll('.prompt-button')[2].click()")
    browser.wait_for("document.body.dataset.shown === '5/2'")
    assert "gone.mp4" in text(browser, ".missing")
    browser.evaluate("location.hash = '#step=99&prompt=1'")
    browser.wait_for("document.body.dataset.shown === '11/0'")
    check_quiet(browser, report)


def test_a_click_in_the_map_or_a_curve_chooses_the_step(browser, report):
    open_report(browser, report)
    browser.evaluate("document.querySelector('#map').scrollIntoView({block: 'center'})")
    box = browser.evaluate("(({x, y}) => [x, y])(document.querySelector('#map canvas').getBoundingClientRect())")
    browser.mouse("click", box[0] + 74 + 48 * 2.5, box[1] + 5)
    browser.wait_for("document.body.dataset.shown?.startsWith('2/')")
    browser.evaluate("document.querySelector('.plot').scrollIntoView({block: 'center'})")
    box = browser.evaluate("(({x, y}) => [x, y])(document.querySelector('.plot').getBoundingClientRect())")
    browser.mouse("click", box[0] + 47, box[1] + 60)
    browser.wait_for("document.body.dataset.shown === '0/0'")
    browser.mouse("move", box[0] + 200, box[1] + 60)
    assert text(browser, "#cursor-step") not in ("0", "11")
    check_quiet(browser, report)


def test_tokens_and_frames_of_an_answer(browser, report):
    open_report(browser, report, fragment="#step=0&prompt=1")
    shown = text(browser, ".answer")
    assert shown.startswith("<think>")
    assert shown.endswith("<|im_end|>")
    logps = browser.evaluate("[...document.querySelector('.answer').children].map(t => Number(t.dataset.logp))")
    assert min(logps) < 0 <= max(logps)
    grounds = "[...document.querySelectorAll('.token')].map(t => getComputedStyle(t).backgroundColor)"
    assert len(set(browser.evaluate(grounds))) > 5
    order = "[...document.querySelectorAll('.strip.shuffled .frame')].map(f => Number(f.dataset.frame))"
    assert browser.evaluate(order) == [3, 1, 0, 2, 7, 5, 6, 4]
    assert "reward" in text(browser, ".parts")
    check_quiet(browser, report)


def test_hostile_text_stays_text(browser, make_run, tmp_path):
    writer = make_run(tmp_path / '<b>run & "x"', 2, model="</script><script>window.owned = 1</script>")
    rows = [
        sample(n, f"{bad[:40]}.mp4", problem=bad, options=[bad], solution=bad) for n, bad in enumerate(HOSTILE)
    ]
    writer.rollouts(1, rows, texts=lambda row, group, n: HOSTILE[(row + n) % len(HOSTILE)])
    out = tmp_path / "report.html"
    write_report(tmp_path / '<b>run & "x"', out)
    for row in range(len(HOSTILE)):
        open_report(browser, out, fragment=f"#step=1&prompt={row + 1}")
        assert browser.evaluate("window.owned") is None
        assert browser.evaluate("document.querySelectorAll('img, main script, main b b').length") == 0
        check_quiet(browser, out)
    assert text(browser, "h1") == '<b>run & "x"'
    open_report(browser, out, fragment="#step=1&prompt=4")
    controls = browser.evaluate("[...document.querySelectorAll('.problem .control')].map(c => c.textContent)")
    assert {"U+202E", "U+0000", "U+0007", "U+200B", "U+FEFF"} <= set(controls)


def test_the_policy_stops_what_the_text_would_not(browser, report, tmp_path):
    """Sensitivity: a script that did get into the file is refused, and the checks above would say so."""
    broken = tmp_path / "broken.html"
    broken.write_text(report.read_text().replace("</main>", "</main><script>window.owned = 1</script><img src=x>"))
    open_report(browser, broken)
    assert browser.evaluate("window.owned") is None
    assert any("Content Security Policy" in error for error in browser.errors)


@pytest.mark.parametrize("width", [390, 1360])
@pytest.mark.parametrize("dark", [False, True])
def test_light_and_dark_narrow_and_wide(browser, report, width, dark):
    open_report(browser, report, width=width, dark=dark)
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    background = "getComputedStyle(document.body).backgroundColor.match(/\\d+/)[0] < 128"
    assert browser.evaluate(background) is dark
    browser.evaluate("document.querySelector('#theme').click()")
    assert browser.evaluate(background) is not dark
    check_quiet(browser, report)


def test_a_supervised_run_has_curves_only(browser, make_run, tmp_path):
    make_run(tmp_path / "sft", 1000, stage="sft")  # several steps to a pixel
    out = tmp_path / "report.html"
    assert write_report(tmp_path / "sft", out).steps_with_answers == 0
    open_report(browser, out)
    assert browser.evaluate("getComputedStyle(document.querySelector('#answers')).display") == "none"
    assert browser.evaluate("document.querySelectorAll('.plot path.mean').length") >= 3
    browser.press("ArrowLeft")
    assert text(browser, "#cursor-step") == "998"
    check_quiet(browser, out)

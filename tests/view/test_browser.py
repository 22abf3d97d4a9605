"""The page in a real browser."""

from __future__ import annotations

import statistics
import time

import pytest

from megatron_gopd.view import view
from tests.view.written import HOSTILE, response, write_run

pytestmark = pytest.mark.slow
SIZES = [(width, scheme) for width in (1280, 500) for scheme in ("light", "dark")]
STATES = ("good", "watch", "bad")
LONG = 10_000


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two runs; the first keeps two responses a step, of two teachers, and one prompt comes again each step."""
    folder = tmp_path_factory.mktemp("view")
    code = {"seed": 1, "teacher": "code", "reward": 0.0, "finish_reason": "length", "kept_as": "longest"}
    rows = [response(step, id="math-1", reward=step / 40) for step in range(1, 41)]
    rows += [response(step, id=f"code-{step}", prompt=f"write {step}", **code) for step in range(1, 41)]
    told = {"reverse_kl": lambda step: 1 / step, "reward": lambda step: step / 40, "teacher_tokens__math": 0.98}
    first = write_run(folder / "first", trajectories=rows, teacher_tokens__code=0.02, **told)
    second = write_run(folder / "second", steps=10, asked=40, reverse_kl=lambda step: step / 10)
    return view([first, second], folder / "two.html")


@pytest.fixture(scope="module")
def long(tmp_path_factory):
    row = response(1, tokens=LONG)
    return view([write_run(tmp_path_factory.mktemp("long") / "long", trajectories=[row, response(2, tokens=LONG)])])


def texts(page, selector: str) -> list[str]:
    return page.locator(selector).all_inner_texts()


def ask(page, name: str, value: str) -> None:
    box = page.locator(f"[data-filter={name}]")
    box.select_option(value) if box.evaluate("box => box.tagName") == "SELECT" else box.fill(value)


@pytest.mark.parametrize(("width", "scheme"), SIZES)
def test_it_opens_without_errors_and_fits_the_width(runs, show, width, scheme):
    page = show(runs, width, scheme)
    assert page.errors == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    lightness = page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)[0]")
    assert (lightness < 128) == (scheme == "dark")


@pytest.mark.parametrize(("width", "scheme"), SIZES)
def test_text_stands_out_from_its_ground(runs, show, width, scheme):
    """A contrast of 4.5, as WCAG asks of text."""
    page = show(runs, width, scheme)
    for selector in TEXTS:
        assert page.locator(selector).first.evaluate(CONTRAST) >= 4.5, selector


CONTRAST = """box => {
  const parse = (text) => (text.match(/[\\d.]+/g) ?? []).map(Number);
  const linear = (part) => (part <= 0.03928 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4);
  const light = ([r, g, b]) => 0.2126 * linear(r / 255) + 0.7152 * linear(g / 255) + 0.0722 * linear(b / 255);
  let ground = box;
  while (parse(getComputedStyle(ground).backgroundColor)[3] === 0) ground = ground.parentElement;
  const [a, b] = [light(parse(getComputedStyle(box).color)), light(parse(getComputedStyle(ground).backgroundColor))];
  return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
}"""
TEXTS = [".card p", ".facts dt", ".item:not([aria-current]) .start", ".about", "nav a", *(f".sign.{s}" for s in STATES)]


def test_lights_are_told_with_their_reasons(runs, show):
    page = show(runs)
    cards = texts(page, "#health .card")
    assert any("reverse KL" in card and "fell: " in card for card in cards)
    assert any("reverse KL" in card and "rose: " in card for card in cards)
    assert any("teachers" in card and "code is starved" in card for card in cards)
    assert texts(page, ".matrix tbody th") == ["first", "second"]


def test_every_metric_has_a_curve_that_is_drawn(runs, show):
    page = show(runs)
    assert {"reverse_kl", "loss", "timing/step_s", "teacher_tokens/code"} <= set(texts(page, ".chart figcaption b"))
    page.locator(".chart canvas").first.scroll_into_view_if_needed()
    canvas, end = page.locator(".chart canvas").first, time.monotonic() + 60
    while canvas.evaluate(COLOURS) < 2 and time.monotonic() < end:  # a colour a run; drawn once it is in sight
        page.wait_for_timeout(100)
    assert canvas.evaluate(COLOURS) >= 2


COLOURS = """canvas => {
  const data = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data, found = new Set();
  for (let at = 0; at < data.length; at += 4) {
    const spread = Math.max(...data.slice(at, at + 3)) - Math.min(...data.slice(at, at + 3));
    if (data[at + 3] === 255 && spread > 60) found.add(data.slice(at, at + 3).join());
  }
  return found.size;
}"""


def test_a_curve_tells_its_values(runs, show):
    page = show(runs)
    page.locator(".chart canvas").first.scroll_into_view_if_needed()
    page.wait_for_timeout(300)
    page.locator(".chart canvas").first.hover(position={"x": 54, "y": 60})
    page.wait_for_selector("#tip:not([hidden])")
    assert "step 1" in page.inner_text("#tip")
    assert page.inner_text("#tip").count("·") == 3  # raw and smoothed, of two runs, under their heading


def test_metrics_are_found_by_name(runs, show):
    page = show(runs)
    page.fill("#find-metric", "timing")
    assert texts(page, ".chart:not([hidden]) figcaption b") == ["timing/step_s"]


@pytest.mark.parametrize(
    ("filters", "count"),
    [
        ({}, 80),
        ({"teacher": "code"}, 40),
        ({"from": "5", "to": "8"}, 8),
        ({"least": "0.5"}, 21),
        ({"finish": "length", "from": "39"}, 2),
        ({"why": "random"}, 40),
        ({"text": "WRITE 17"}, 1),
        ({"text": "no such words"}, 0),
    ],
)
def test_responses_are_filtered(runs, show, filters, count):
    page = show(runs)
    for name, value in filters.items():
        ask(page, name, value)
    assert page.inner_text("#found") == f"{count} of 80 kept responses"


def test_responses_are_ordered(runs, show):
    page = show(runs)
    assert texts(page, ".item b")[0] == "step 40"
    ask(page, "order", "highest reward")
    assert texts(page, ".item .reward")[:3] == ["1", "0.975", "0.95"]


def test_a_token_tells_all_its_numbers(runs, show):
    page = show(runs)
    ask(page, "text", "math-1")
    page.locator(".item").first.click()
    page.locator("#tokens span[data-at='3']").hover()
    told = page.inner_text("#tip")
    assert "token 4 of 12" in told
    for name in ("advantage", "KL to teacher", "entropy", "gap to reference", "gap to engine", "log π engine"):
        assert name in told
    assert "0.3" in told.split("advantage", 1)[1]


def test_tokens_take_the_colour_of_the_column(runs, show):
    page = show(runs)
    ask(page, "text", "math-1")
    page.locator(".item").first.click()

    def classes() -> list[str]:
        return page.locator("#tokens span[data-at]").evaluate_all("all => all.map((each) => each.className)")

    page.select_option("#column", "advantage")
    assert classes()[0] == ""  # 0
    assert classes()[-1] == "cool-16"  # the largest, to be said more often
    before = classes()
    page.select_option("#column", "entropy")
    assert classes() != before
    assert {each.split("-")[0] for each in classes()} - {""} == {"warm"}


def test_two_responses_to_a_prompt_are_compared(runs, show):
    page = show(runs)
    page.locator("[data-filter=again]").check()
    assert page.inner_text("#found") == "40 of 80 kept responses"
    page.locator(".item").first.click()
    page.select_option("#against", index=1)
    assert texts(page, ".versus thead th")[1:] == ["first, step 1", "first, step 40"]
    older = page.locator(".diff span, .diff del").evaluate_all("all => all.map((each) => each.textContent).join('')")
    newer = page.locator(".diff span, .diff ins").evaluate_all("all => all.map((each) => each.textContent).join('')")
    shown = {step: shown_text(response(step)["response"]) for step in (1, 40)}
    assert (older, newer) == (shown[1], shown[40])


def shown_text(text: str) -> str:
    return text.replace("\t", "⇥\t").replace("\n", "↵\n")


def test_the_keyboard_goes_through_the_list(runs, show):
    page = show(runs)
    page.keyboard.press("j")
    assert page.locator(".item").nth(1).get_attribute("aria-current") == "true"


def test_hostile_content_is_text(show, tmp_path):
    row = response(1, pieces=[*HOSTILE, "x" * 1_000_000], id=HOSTILE[0], teacher=HOSTILE[1], prompt=HOSTILE[0])
    config = {"run": {"name": HOSTILE[0], "steps": 40}, "student": {"model": HOSTILE[1]}}
    page = show(view([write_run(tmp_path / "a", trajectories=[row], config=config, **{HOSTILE[1]: 1.0})]))
    page.wait_for_selector("#tokens")
    assert page.errors == []
    assert page.evaluate("window.hacked") is None
    assert page.locator("img, #tokens script").count() == 0
    shown = texts(page, "#tokens span[data-at]")
    assert shown[:3] == HOSTILE[:3]
    assert shown[3] == "␛[31mred␛[0m␀␍⟨U+2028⟩"
    assert shown[4] == "⟨U+202E⟩gnirts"
    assert page.locator("h1").inner_text().startswith(HOSTILE[0])


def test_metrics_and_columns_of_any_name_are_shown(show, tmp_path):
    path = write_run(tmp_path / "a", trajectories=[response(1, teacher="__proto__")])
    (path / "metrics.jsonl").write_text('{"step": 1, "__proto__": 1, "constructor": 2, "toString": 3}\n')
    page = show(view([path]))
    assert page.errors == []
    assert sorted(texts(page, ".chart figcaption b")) == ["__proto__", "constructor", "toString"]


def test_a_run_of_another_version_is_shown_with_what_is_there(show, tmp_path):
    path = write_run(tmp_path / "old", steps=4, config={"logging": {}})
    (path / "metrics.jsonl").write_text('{"step": 1, "loss": 0.5}\n{"step": 2, "loss"')
    (path / "config.yaml").unlink()
    page = show(view([path]))
    assert page.errors == []
    notes = page.inner_text(".notes")
    assert "there is no config.yaml" in notes
    assert "another version" in notes
    assert "No responses were kept" in page.inner_text("#responses")
    assert texts(page, ".chart figcaption b") == ["loss"]


def test_ten_thousand_tokens_stay_smooth(long, show):
    """By the processor's time of the page's thread, which other processes do not lengthen."""
    page = show(long)
    page.wait_for_selector(f"#tokens span[data-at='{LONG - 1}']", state="attached")
    assert seconds_of(page, HOVER, times=40) < 0.016  # a frame
    assert seconds_of(page, RECOLOUR, times=8) < 0.3


def seconds_of(page, script: str, times: int) -> float:
    """Thread time of script(0), script(1), ...: script, style and layout; a mean, the first call left out."""
    session = page.context.new_cdp_session(page)
    session.send("Performance.enable", {"timeDomain": "threadTicks"})
    page.evaluate(script, 0)

    def spent() -> float:
        metrics = {each["name"]: each["value"] for each in session.send("Performance.getMetrics")["metrics"]}
        return metrics["TaskDuration"]

    start = spent()
    for number in range(1, times + 1):
        page.evaluate(script, number)
    return (spent() - start) / times


HOVER = """number => {
  const span = document.querySelector(`#tokens span[data-at="${number * 200}"]`);
  span.dispatchEvent(new PointerEvent("pointermove", { bubbles: true, clientX: 200, clientY: 200 }));
  void document.getElementById("tip").offsetHeight;
}"""
RECOLOUR = """number => {
  const chosen = document.getElementById("column");
  chosen.selectedIndex = number % 2;
  chosen.dispatchEvent(new Event("change"));
  void document.getElementById("tokens").offsetHeight;
}"""


def test_two_hundred_steps_of_the_quickstart_s_size_open_at_once(show, tmp_path):
    """At most 15 MB, and two seconds: the best of three, since other processes take their turns."""
    rows = [response(step, seed=seed, tokens=16, id=f"p{seed}") for step in range(1, 201) for seed in range(10)]
    series = {f"timing__{name}_s": 0.1 for name in ("rollout", "score", "grade", "train", "sync", "checkpoint")}
    series |= {f"reverse_kl__{name}": lambda step: 1 / step for name in "abcdefghijklmnopqrst"}
    page = view([write_run(tmp_path / "quick", steps=200, trajectories=rows, **series)])
    assert page.stat().st_size < 15e6
    seconds = []
    for _ in range(3):
        start = time.monotonic()
        show(page)
        seconds.append(time.monotonic() - start)
    assert min(seconds) < 2, statistics.median(seconds)

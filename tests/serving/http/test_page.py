import asyncio
import json
import re
from contextlib import aclosing, contextmanager
from dataclasses import replace
from html.parser import HTMLParser
from importlib.resources import files
from types import SimpleNamespace

import pytest

from nllb_prune.report import theme
from tests.serving.http import chromium
from tests.serving.http.servers import Upper, running, wait_until

PAGE = files("nllb_prune.serving.http") / "page"
FILES = {each.name: each.read_text(encoding="utf-8") for each in PAGE.iterdir() if each.is_file()}
SCRIPTS = {name: text for name, text in FILES.items() if name.endswith(".js")}
ELEMENTS_WITHOUT_END = {"meta", "link", "input", "img", "br"}
# Of the style sheet: on which ground each colour is read.
READ = [("ink", "paper"), ("soft", "paper"), ("soft", "tint"), ("fair", "paper"), ("bad", "paper"), ("good", "paper"),
        ("series-0", "paper"), ("paper", "kept")]  # fmt: skip
NAMED_OTHERWISE = {"tint": 0, "faint": 1, "half": 2, "kept": 4}  # places in the sequential ramp


class Outline(HTMLParser):
    """Elements with their attributes, the text inside, and the element around."""

    def __init__(self, text):
        super().__init__()
        self.elements, self._open = [], []
        self.feed(text)
        self.close()
        assert not self._open

    def handle_starttag(self, tag, attributes):
        made = SimpleNamespace(
            tag=tag, text="", around=self._open[-1] if self._open else None, **{"all": dict(attributes)}
        )
        self.elements.append(made)
        if tag not in ELEMENTS_WITHOUT_END:
            self._open.append(made)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in ELEMENTS_WITHOUT_END:
            self._open.pop()

    def handle_endtag(self, tag):
        assert self._open.pop().tag == tag

    def handle_data(self, data):
        for each in self._open:
            each.text += data

    def named(self, *tags):
        return [each for each in self.elements if each.tag in tags]


@pytest.fixture(scope="module")
def outline():
    return Outline(FILES["index.html"])


def test_asks_nothing_of_other_places():
    for name, text in FILES.items():
        assert not re.search(r"(https?:)?//[a-z]", text.replace("http://www.w3.org/2000/svg", ""), re.I), name
        assert "@import" not in text, name


def test_obeys_a_strict_content_policy(outline):
    assert not [each for each in outline.elements for name in each.all if name == "style" or name.startswith("on")]
    assert not outline.named("style")
    assert [each.text for each in outline.named("script")] == [""]
    for name, text in SCRIPTS.items():
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function", text), (
            name
        )


def test_every_file_is_used_and_there(outline):
    asked = {each.all.get("src") or each.all["href"] for each in outline.named("script", "link", "img")}
    found = {path.removeprefix("static/") for path in asked}
    while more := {name for each in found for name in re.findall(r'from "\./(.+?)"', SCRIPTS.get(each, ""))} - found:
        found |= more
    assert {*found, "index.html"} == set(FILES)


def test_every_field_has_a_label(outline):
    labels = {each.all.get("for") for each in outline.named("label")}
    for field in outline.named("input", "select", "textarea"):
        assert field.all["id"] in labels or field.around.tag == "label", field
    for button in outline.named("button"):
        assert button.all.get("aria-label") or button.text.strip(), button


def test_what_is_named_exists(outline):
    ids = [each.all["id"] for each in outline.elements if "id" in each.all]
    assert len(ids) == len(set(ids))
    for each in outline.elements:
        for name in ("for", "aria-controls", "aria-describedby", "aria-labelledby"):
            assert set(each.all.get(name, "").split()) <= set(ids), each
    assert {name for text in SCRIPTS.values() for name in re.findall(r'byId\("(.+?)"\)', text)} <= set(ids)


def test_has_the_colours_of_the_reports():
    known = [dict(pair.split(":", 1) for pair in each.split(";")) for each in theme.style_variables()]
    for scheme, colours in enumerate(_colours()):
        for name, found in colours.items():
            ramp = theme.SEQUENTIAL[scheme]
            wanted = ramp[NAMED_OTHERWISE[name]] if name in NAMED_OTHERWISE else known[scheme][f"--{name}"]
            assert found == wanted, (scheme, name)


def test_colours_can_be_read():
    for colours in _colours():
        for name, ground in READ:
            assert _contrast(colours[name], colours[ground]) >= 4.5, (name, ground)
        assert _contrast(colours["kept"], colours["faint"]) >= 3


def _colours():
    """Of the light and the dark scheme."""
    blocks = re.findall(r":root\{\n(.+?)\n\}", FILES["page.css"], re.S)
    assert len(blocks) == 2
    return [dict(re.findall(r"--([\w-]+):(#\w{6});", block)) for block in blocks]


def _contrast(first, second):
    """As WCAG 2 has it."""
    lights = sorted((_light(first), _light(second)))
    return (lights[1] + 0.05) / (lights[0] + 0.05)


def _light(colour):
    parts = [int(colour[n : n + 2], 16) / 255 for n in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


# In a browser

needs_chromium = pytest.mark.skipif(
    not chromium.installed(), reason=f"needs {chromium.BROWSER} and {chromium.DRIVER}, which are not there"
)
ANNOUNCED = "document.querySelector('#kept .notice').textContent.startsWith(arguments[0])"
BEGUN = "document.querySelector('#kept .output').textContent.startsWith(arguments[0])"
WAS_SAID = "said.some((each) => each.startsWith(arguments[0]))"
SAID = "document.querySelector('#kept .notice').textContent === arguments[0]"
TRANSLATED = "document.querySelector('#kept .output').textContent === arguments[0]"


class Staged(Upper):
    """Translates as `Upper` does; the full model says THERE where the kept experts say WORLD."""

    def __init__(self):
        super().__init__(0.05)

    async def stream(self, ask):
        async with aclosing(super().stream(self._said(ask))) as parts:
            async for part in parts:
                yield part

    def _said(self, ask):
        return replace(ask, texts=tuple(text.replace("world", "there") for text in ask.texts)) if ask.full else ask

    async def states(self):
        [state] = await super().states()
        masks = await self.sides_of("eng_Latn", "deu_Latn", full=False)
        return [replace(state, sides=masks)]


class Refusing:
    """Answers the next requests for a stream as it is told, and passes all others on."""

    def __init__(self, app):
        self.app, self.state, self.refusals, self.keys, self.after = app, app.state, [], [], "1"

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http" or scope["path"] != "/v1/stream":
            return await self.app(scope, receive, send)
        self.keys.append(dict(scope["headers"]).get(b"authorization", b"").decode())
        if not self.refusals:
            return await self.app(scope, receive, send)
        await asyncio.sleep(0.05)
        status = self.refusals.pop(0)
        headers = [(b"content-type", b"application/json"), (b"retry-after", self.after.encode())]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": json.dumps({"error": f"Refused with {status}"}).encode()})


@contextmanager
def staged():
    from nllb_prune.serving.http.app import make_app
    from nllb_prune.serving.http.settings import ServerSettings

    backend = Staged()

    async def opening():
        return backend

    app = Refusing(make_app(opening, ServerSettings(characters=200)))
    with running(app) as url:
        yield SimpleNamespace(url=url, backend=backend, door=app)


@pytest.fixture(scope="module")
def server():
    with staged() as found:
        yield found


@pytest.fixture(scope="module")
def tab(tmp_path_factory):
    if not chromium.installed():
        pytest.skip(f"needs {chromium.BROWSER} and {chromium.DRIVER}, which are not there")
    with chromium.browser(tmp_path_factory.mktemp("chromium") / "profile") as found:
        yield found


@pytest.fixture
def page(server, tab):
    """The page, new, from English into Spanish."""
    server.backend.seconds, server.backend.error, server.door.refusals = 0.01, None, []
    tab.open("about:blank")
    tab.size(1200, 900)
    tab.open(f"{server.url}/#source=eng_Latn&target=spa_Latn")
    tab.wait("document.getElementById('source').value === 'English'")
    yield tab
    allowed = ("Failed to load resource", "ERR_INTERNET_DISCONNECTED")
    assert not [each for each in tab.messages() if not any(words in each for words in allowed)]


def _write(page, text, *, at_once=False):
    """Put a text in place of what there is, at one stroke; with Control and Enter, before the page asks by itself."""
    page.run(
        "const text = document.getElementById('text'); text.focus(); text.value = arguments[0];"
        "text.dispatchEvent(new Event('input', { bubbles: true }));"
        "const enter = { key: 'Enter', ctrlKey: true, bubbles: true };"
        "if (arguments[1]) text.dispatchEvent(new KeyboardEvent('keydown', enter))",
        text,
        at_once,
    )


def _translated(page, text):
    _write(page, text, at_once=True)
    page.wait(TRANSLATED, text.upper())
    page.wait("document.getElementById('translate').textContent === 'Translate'")


def _shown(page, selector):
    return page.run("return document.querySelector(arguments[0]).checkVisibility()", selector)


@needs_chromium
def test_translates_while_one_types(page):
    page.type("#text", "good morning world")
    page.wait(TRANSLATED, "GOOD MORNING WORLD")
    page.wait("document.getElementById('translate').textContent === 'Translate'")
    assert page.run("return document.querySelector('#kept .output').lang") == "es"
    assert page.text("#facts").split("\n")[:3] == ["Experts", "8", "of 32, 25\xa0%"]
    assert "the encoder with those of English, the decoder with those of Spanish" in page.text("#work-lead")
    labels = "return [...document.querySelectorAll('#stacks svg')].map((each) => each.getAttribute('aria-label'))"
    assert page.run(labels)[:2] == [f"Layer {layer} of the encoder: 2 of 8 experts kept" for layer in (1, 3)]
    assert page.text("#count") == "18 / 200"
    assert "masks 0123456789ab" in page.text("#made")


@needs_chromium
def test_shows_parts_as_they_come(page, server):
    server.backend.seconds = 0.2
    page.run(
        "window.seen = []; const output = document.querySelector('#kept .output');"
        "new MutationObserver(() => seen.push(output.textContent)).observe(output, { childList: true })"
    )
    before = len(server.backend.asks)
    _translated(page, "one two three")
    assert page.run("return seen") == ["ONE", "ONE TWO", "ONE TWO THREE"]
    assert len(server.backend.asks) == before + 1


@needs_chromium
def test_gives_up_what_is_not_wanted_any_more(page, server):
    server.backend.seconds = 0.2
    before = server.backend.cancelled
    _write(page, "one" + " two" * 40, at_once=True)
    page.wait(BEGUN, "ONE")
    _translated(page, "seven")
    wait_until(lambda: server.backend.cancelled == before + 1)
    _write(page, "one" + " two" * 40)
    page.wait(BEGUN, "ONE TWO")
    page.press("Escape")
    page.wait(SAID, "Stopped.")
    assert page.text("#translate") == "Translate"


@needs_chromium
def test_control_and_enter_translate_at_once(page, server):
    before = len(server.backend.asks)
    assert page.text("#translate") == "Translate"
    state = page.run(
        "const text = document.getElementById('text'); text.value = 'hello';"
        "text.dispatchEvent(new Event('input', { bubbles: true }));"
        "text.dispatchEvent(new KeyboardEvent('keydown', { key: 'Enter', ctrlKey: true, bubbles: true }));"
        "return document.getElementById('translate').textContent"
    )
    assert state == "Stop"  # sooner than it would by itself
    page.wait(TRANSLATED, "HELLO")
    page.wait("document.getElementById('translate').textContent === 'Translate'")
    assert len(server.backend.asks) == before + 1
    page.press("Control", "Enter")
    wait_until(lambda: len(server.backend.asks) == before + 2)
    page.wait("document.getElementById('translate').textContent === 'Translate'")


@needs_chromium
def test_compares_with_the_full_model(page):
    page.click("#compare")
    _write(page, "good morning world")
    page.wait("!document.getElementById('differences').hidden")
    marks = "return [...document.querySelectorAll('.output mark')].map((each) => each.textContent)"
    assert page.run(marks) == ["WORLD", "THERE"]
    assert page.text("#differences") == "Marked words differ: 1 with the kept experts, 1 with the full model."
    assert page.text("#kept .size") == "8 of 32, 200\xa0B"
    assert page.text("#all .size") == "32 of 32, 200\xa0B"
    assert "full model:" in page.text("#facts")
    page.click("#compare")
    assert page.run(marks) == []
    assert not _shown(page, "#all")


@needs_chromium
def test_compares_what_is_translated_already(page, server):
    _translated(page, "hello world")
    before = len(server.backend.asks)
    page.click("#compare")
    page.wait("!document.getElementById('differences').hidden")
    assert [each.full for each in server.backend.asks[before:]] == [True]


@needs_chromium
def test_leaves_a_text_in_the_language_that_is_wanted(page):
    page.run("location.hash = '#source=auto&target=eng_Latn'")
    page.wait("document.getElementById('target').value === 'English'")
    page.click("#compare")
    _write(page, "What is the weather like today?")
    page.wait(SAID, "This is English already and stays as it is.")
    assert not _shown(page, "#work")


@needs_chromium
def test_words_that_differ(page):
    """Pieces of both sides, and how many words differ."""
    cut = """return import('./static/difference.js').then(({ difference }) => {
      const { pieces, words } = difference(...arguments);
      const shown = pieces.map((side) => side.map(({ text, differs }) => (differs ? `[${text}]` : text)).join(''));
      return [...shown, words];
    })"""
    for first, second, tag, wanted in [
        ("a b c", "a b c", "en", ["a b c", "a b c", [0, 0]]),
        ("", "a b", "en", ["", "[a b]", [0, 2]]),
        ("The old cat sat.", "The cat lay down.", "en", ["The [old] cat [sat].", "The cat [lay down].", [2, 2]]),
        ("x y, z q", "x, z y q", "en", ["x [y], z q", "x, z [y] q", [1, 1]]),
        ("一二", "", "zh", ["[一二]", "", None]),
    ]:
        found = page.run(cut, first, second, tag)
        assert found[:2] == wanted[:2]
        assert wanted[2] is None or found[2] == wanted[2]


@needs_chromium
def test_languages_are_chosen_by_keyboard(page):
    page.run("document.getElementById('target').focus()")
    page.run("document.getElementById('target').select()")
    page.press("c"), page.press("h"), page.press("i")
    assert page.text("#target-list") == "Chinese (Simplified)\nzho_Hans"
    assert page.run("return document.getElementById('target').getAttribute('aria-activedescendant')") == "target-list-0"
    page.press("Enter")
    assert page.run("return location.hash") == "#source=eng_Latn&target=zho_Hans"
    assert not _shown(page, "#target-list")
    page.press("ArrowDown")
    page.press("ArrowUp")
    page.press("Escape")
    assert page.run("return [document.getElementById('target').value, location.hash]") == [
        "Chinese (Simplified)", "#source=eng_Latn&target=zho_Hans"
    ]  # fmt: skip


@needs_chromium
def test_offers_only_what_is_served(page):
    page.click("#source")
    assert "German" not in page.text("#source-list")  # is only translated into
    assert page.text("#source-list").startswith("Detect language")
    page.press("Escape")
    page.click("#target")
    assert "English" not in page.text("#target-list")
    assert "German" in page.text("#target-list")


@needs_chromium
def test_swaps_languages_and_texts(page):
    _translated(page, "hello world")
    page.click("#swap")
    assert page.run("return location.hash") == "#source=spa_Latn&target=eng_Latn"
    assert page.run("return document.getElementById('text').value") == "HELLO WORLD"
    page.run("location.hash = '#source=en&target=de'")
    page.wait("document.getElementById('target').value === 'German'")
    assert page.run("return document.getElementById('swap').disabled")


@needs_chromium
def test_detects_the_language(page):
    page.run("location.hash = '#source=auto&target=deu_Latn'")
    page.wait("document.getElementById('source').value === 'Detect language'")
    _translated(page, "what is the weather like today")
    assert page.run("return document.getElementById('source').value") == "English (detected)"
    assert page.text("#detected").startswith("Detected, ")


@needs_chromium
def test_shows_text_from_right_to_left(page):
    page.run("location.hash = '#source=arb_Arab&target=eng_Latn'")
    page.wait("document.getElementById('target').value === 'English'")
    _translated(page, "صباح الخير")
    sides = "return ['#text', '#kept .output'].map((each) => getComputedStyle(document.querySelector(each)).direction)"
    assert page.run(sides) == ["rtl", "rtl"]
    assert page.run("return document.getElementById('text').lang") == "ar"


@needs_chromium
def test_offers_alternatives(page):
    page.run("document.getElementById('alternatives').value = '2'")
    _translated(page, "hello")
    assert page.text("#kept .others").split("\n")[1:] == ["HELLO!", "HELLO!!"]


@needs_chromium
def test_tries_again_once_when_the_server_is_busy(page, server):
    page.run(
        "window.said = []; const notice = document.querySelector('#kept .notice');"
        "new MutationObserver(() => said.push(notice.textContent)).observe(notice, { childList: true })"
    )
    server.door.refusals = [429]
    _write(page, "hello")
    page.wait(WAS_SAID, "Refused with 429. Trying again ")
    page.wait(TRANSLATED, "HELLO")
    assert not _shown(page, "#kept .notice")
    server.door.refusals = [503, 503]
    _write(page, "again", at_once=True)
    page.wait(WAS_SAID, "Refused with 503. Trying again ")
    page.wait(SAID, "Refused with 503")


@needs_chromium
def test_says_what_went_wrong(page, server):
    _write(page, "a" * 201)
    page.wait(ANNOUNCED, "The text is 1 character longer")
    _translated(page, "one two three")
    assert _shown(page, "#work")
    server.backend.error = RuntimeError("secret")
    _write(page, "one two")
    page.wait(ANNOUNCED, "Internal error")
    assert page.text("#kept .output") == ""
    assert not _shown(page, "#work")


@needs_chromium
def test_says_that_there_is_no_connection(page):
    page.command("Network.enable")
    shape = {"latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
    page.command("Network.emulateNetworkConditions", offline=True, **shape)
    try:
        _write(page, "hello")
        page.wait(ANNOUNCED, "You are offline.")
    finally:
        page.command("Network.emulateNetworkConditions", offline=False, **shape)
    page.wait(TRANSLATED, "HELLO")  # by itself


@needs_chromium
def test_asks_for_a_key(page, server):
    assert not _shown(page, "#key")
    server.door.refusals = [403]
    _write(page, "hello")
    page.wait("document.getElementById('key').checkVisibility()")
    page.type("#key", "0000-1111")
    page.press("Enter")
    page.wait(TRANSLATED, "HELLO")
    assert server.door.keys[-1] == "Bearer 0000-1111"
    assert page.run("return [Object.values(sessionStorage), localStorage.length]") == [["0000-1111"], 0]
    page.run("sessionStorage.clear()")


@needs_chromium
@pytest.mark.parametrize("width", [360, 768, 1440])
def test_fits_every_screen(page, width):
    page.size(width, 800, phone=width < 700)
    page.click("#compare")
    page.run("document.querySelectorAll('details').forEach((each) => (each.open = true))")
    _translated(page, "good morning world " + "w" * 90)
    assert page.run("return document.documentElement.scrollWidth - innerWidth") <= 0
    tops = "return ['#kept', '#all'].map((each) => document.querySelector(each).getBoundingClientRect().top)"
    kept, full = page.run(tops)
    assert (kept < full) == (width == 360)  # one below the other, or side by side

"""The page at `/` as a reader has it, in headless Chromium."""

import itertools
import json
import threading
from types import SimpleNamespace

import numpy as np
import pytest

from tests.conftest import wait_until
from tests.serving.chromium import PROGRAM, browser, shown
from tests.serving.conftest import Served, serving
from tpullm.serving.answer_writing import Writing

pytestmark = [pytest.mark.ci, pytest.mark.skipif(not PROGRAM, reason="there is no Chromium on this machine")]
HOSTILE = "<img src=x onerror=\"fetch('https://evil.example/')\"><b>猫</b>"


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """A server without a key, a browser, and the address of the page."""
    with serving("small") as served, browser(tmp_path_factory.mktemp("browser")) as page:
        yield SimpleNamespace(served=served, page=page, url=f"http://127.0.0.1:{served.port}/")


@pytest.fixture
def page(one):
    """The page, newly opened; nothing may have gone to another host, or be an error in the console."""
    one.page.requests.clear()
    opened(one.page, one.url)
    yield one.page
    assert one.page.faults == []
    assert {url.split("/")[2] for url in one.page.requests if url != "data:,"} == {f"127.0.0.1:{one.served.port}"}


@pytest.fixture
def two(one, chat_tokenizer, monkeypatch):
    """The same browser, at a server of two models: `tuned`, and `run/base` before its tuning."""
    served = Served({"tuned": chat_tokenizer, "run/base": chat_tokenizer}, key="", longest=128)
    models = served.service.models
    monkeypatch.setattr(models["tuned"], "base", "run/base")
    monkeypatch.setattr(models["tuned"], "questions", ["⟦one⟧", "⟦two⟧"])
    monkeypatch.setattr(models["run/base"], "talks", False)
    served.step()
    one.page.requests.clear()
    opened(one.page, f"http://127.0.0.1:{served.port}/")
    yield SimpleNamespace(served=served, page=one.page)
    assert one.page.faults == []
    served.listening.stop(served.service.stop)


def opened(page, url, **how):
    page.value("typeof newConversation === 'undefined' || newConversation()")  # the tab keeps it
    page.open(url, **how)
    page.wait("models.length")


def say(page, text):
    page.value(f"by('message').value = {json.dumps(text)}; by('chat-form').requestSubmit()")


def press(page, number, name):
    """Press the button of this name below a message."""
    buttons = f"[...document.querySelectorAll('.message')[{number}].querySelectorAll('.actions button')]"
    page.value(f"{buttons}.find((node) => node.textContent === {json.dumps(name)}).click()")


def test_an_answer_comes_in_parts_and_stays_a_text(one, page):
    one.served.engine.turns = turns = threading.Semaphore(0)
    say(page, f"⟦{HOSTILE}⟧")
    turns.release(4)
    page.wait("messages[1].content")
    assert HOSTILE.startswith(shown(page, ".assistant .text")[0]) and not page.value("by('stop').hidden")
    one.served.engine.turns = None
    turns.release(1)
    page.wait("!answering")
    assert shown(page, ".message .text") == [f"⟦{HOSTILE}⟧", HOSTILE]
    assert page.value("document.querySelectorAll('main img, main b').length") == 0


def test_stop_ends_the_answer_in_the_server_too(one, page):
    engine = one.served.engine
    engine.turns, before = threading.Semaphore(9), set(engine.cancelled)
    say(page, "⟦" + "abc " * 50 + "⟧")
    page.wait("messages[1].content")
    page.value("by('stop').click()")
    page.wait("!answering")
    turns, engine.turns = engine.turns, None
    turns.release(9)
    wait_until(lambda: engine.cancelled - before)
    assert shown(page, ".assistant .note") == ["You stopped this answer."]


def test_a_conversation_is_sent_as_a_whole_and_can_be_new(page):
    for text in ("⟦one⟧", "⟦two⟧"):
        say(page, text)
        page.wait("!answering")
    assert shown(page, ".text") == ["⟦one⟧", "one", "⟦two⟧", "two"]
    page.value("by('new').click()")
    assert shown(page, ".text") == [] and page.value("messages.length") == 0


def test_what_was_sent_and_the_end_of_its_answer_are_in_sight(page):
    say(page, "⟦" + "one\n\n" * 30 + "⟧" + "\n" * 30)
    page.wait("!answering")
    last, form = "by('messages').lastChild", "by('chat-form')"
    assert page.value(f"{last}.getBoundingClientRect().bottom <= {form}.getBoundingClientRect().top")
    assert page.value("scrollY") > 0


def test_a_question_is_answered_and_its_text_continued_side_by_side(two):
    page = two.page
    assert shown(page, "#questions button") == ["⟦one⟧", "⟦two⟧"]
    page.value("by('questions').children[1].click()")
    page.wait("messages.length === 2 && !answering")
    assert page.value("by('beginning').hidden")
    assert shown(page, ".assistant .text") == ["two", "⟦two⟧two"]  # the base's begins with what it continues
    assert shown(page, ".who") == [
        "tuned: answers, after tuning",
        "run/base: goes on with the same text, before tuning",
    ]
    places = "[...document.querySelectorAll('.assistant .answer')].map((node) => node.getBoundingClientRect())"
    assert page.value(f"(([a, b]) => a.top === b.top && a.right <= b.left)({places})")
    page.call("Emulation.setDeviceMetricsOverride", width=390, height=844, deviceScaleFactor=1, mobile=True)
    assert page.value(f"(([a, b]) => a.bottom <= b.top && a.left === b.left)({places})")
    assert page.value("document.documentElement.scrollWidth") <= 390


def test_a_text_is_read_by_the_base_unless_another_is_chosen(two):
    page = two.page
    ask_what_comes(page, "The cat sat.")
    tuned, base = two.served.engines.values()
    assert tuned._count == 0 and base._count > 0
    before = base._count
    assert shown(page, "#reader option") == ["run/base", "tuned"]
    page.value("by('reader').value = 'tuned'; by('reader').dispatchEvent(new Event('change'))")
    page.wait("shown && !reading")
    assert (tuned._count, base._count) == (1, before)
    page.value("by('model').value = 'run/base'; by('model').dispatchEvent(new Event('change'))")
    assert page.value("by('readers').hidden && by('reader').value === 'run/base'")


def test_a_question_is_edited_and_an_answer_written_again(one, page):
    for text in ("⟦one⟧", "⟦two⟧"):
        say(page, text)
        page.wait("!answering")
    before = one.served.engine._count
    press(page, 0, "Edit")
    page.value("document.querySelector('.editing textarea').value = '⟦three⟧'")
    page.value("document.querySelector('.editing').requestSubmit()")
    page.wait("!answering && messages.length === 2")
    assert shown(page, ".text") == ["⟦three⟧", "three"] and one.served.engine._count == before + 1
    press(page, 0, "Edit")
    page.value("document.querySelector('.editing button[type=button]').click()")
    assert shown(page, ".text") == ["⟦three⟧", "three"]
    press(page, 1, "Answer again")
    page.wait("!answering && messages[1]?.content")
    assert shown(page, ".text") == ["⟦three⟧", "three"] and one.served.engine._count == before + 2


@pytest.mark.parametrize("forbidden", [False, True])
def test_an_answer_is_copied_as_it_was_written(page, forbidden):
    say(page, "⟦a **b**⟧")
    page.wait("!answering")
    refuses = "throw new Error('not allowed')" if forbidden else "copied = text"
    page.value(f"copied = ''; navigator.clipboard.writeText = async (text) => {{ {refuses} }}")
    page.value("document.execCommand = () => { copied = document.getSelection().toString(); return true }")
    press(page, 1, "Copy")
    page.wait("copied")
    assert page.value("copied") == "a **b**"
    page.wait("document.querySelector('.assistant .actions').textContent.startsWith('Copied')")


def test_a_reload_keeps_the_conversation_until_it_is_new(one, two):
    page = two.page
    page.value("by('system').value = 'Be brief.'")
    say(page, "⟦**one**⟧")
    page.wait("!answering")
    for texts in (["⟦**one**⟧", "one", "⟦**one**⟧**one**"], []):
        page.open(f"http://127.0.0.1:{two.served.port}/")
        page.wait("models.length")
        assert shown(page, ".text") == texts
        page.value("by('new').click()")
    page.value("keep(chatKey(), '{broken')")
    assert page.value("keptChat()") is None
    page.value("here[chatKey()] = JSON.stringify({ model: 'gone', messages: [] })")
    assert page.value("keptChat()") is None and not page.value("localStorage.length")


def test_another_model_of_the_same_name_begins_anew(one, page, monkeypatch):
    monkeypatch.setattr(one.served.service.models["small"], "identity", "first")
    opened(page, one.url)
    say(page, "⟦one⟧")
    page.wait("!answering")
    for identity, texts in (("second", []), ("first", ["⟦one⟧", "one"])):
        monkeypatch.setattr(one.served.service.models["small"], "identity", identity)
        page.open(one.url)
        page.wait("models.length")
        assert shown(page, ".text") == texts


def test_what_no_storage_takes_is_kept_as_long_as_the_page_is(page):
    page.value("Storage.prototype.setItem = () => { throw new DOMException('', 'QuotaExceededError') }")
    say(page, "⟦one⟧")
    page.wait("!answering")
    assert page.value("keptChat().messages.length") == 2


def test_the_system_prompt_comes_before_the_conversation(one, page, monkeypatch):
    page.value("by('system').value = 'Be brief.'; document.querySelector('.settings').open = true")
    page.value("sent = []; asks = fetch; fetch = (path, options) => (sent.push(options.body), asks(path, options)); 0")
    say(page, "⟦one⟧")
    page.wait("!answering")
    assert json.loads(page.value("sent[0]"))["messages"][0] == {"role": "system", "content": "Be brief."}
    monkeypatch.setattr(one.served.service.models["small"], "takes_system", False)
    opened(page, one.url)
    assert page.value("by('system-field').hidden")


def test_old_turns_are_left_out_and_said_to_be_and_what_is_too_long_goes_back(two):
    page = two.page
    for _ in range(3):
        say(page, "⟦" + "abc " * 12 + "⟧")
        page.wait("!answering")
    told = "The conversation is longer than the model’s context: its oldest turns ("
    notes = [note for note in shown(page, ".assistant .note") if note.startswith(told)]
    assert notes and page.value("by('error').hidden") and len(shown(page, ".message")) == 6
    long = "abc " * 300
    say(page, long)
    page.wait("!answering && !by('error').hidden")
    assert "shorten it" in shown(page, "#error span span")[0] and page.value("again === null")
    assert page.value("by('message').value") == long.strip() and len(shown(page, ".message")) == 6
    page.faults.clear()  # the browser notes the refusal


def test_markdown_is_shown_and_nothing_of_it_is_html(page):
    lines = [
        "# Head",
        "a **b** `c` *d* 2*3*4 5*6*",
        "",
        "- one",
        "  1. two",
        "- three",
        "",
        "```py",
        "<b>&lt;",
        "```",
        "",
    ]
    lines += ["| x | y |", "|---|---|", "| 1 | [a](https://evil.example) |", "", "> quoted", "", "---", "end"]
    page.value(f"add('assistant', {json.dumps(chr(10).join(lines))})")
    held = page.value("document.querySelector('.assistant .text').innerHTML")
    assert held == (
        "<h3>Head</h3><p>a <strong>b</strong> <code>c</code> <em>d</em> 2*3*4 5*6*</p>"
        '<ul><li>one<ol start="1"><li>two</li></ol></li><li>three</li></ul>'
        "<pre><code>&lt;b&gt;&amp;lt;</code></pre>"
        '<div class="wide"><table><thead><tr><th>x</th><th>y</th></tr></thead><tbody><tr><td>1</td>'
        "<td>[a](https://evil.example)</td></tr></tbody></table></div>"
        "<blockquote><p>quoted</p></blockquote><hr><p>end</p>"
    )


@pytest.mark.parametrize(
    "part", ["**a ", "*a ", "`", ">", "- ", " " * 50 + "|", "|-", "  - a\n" + " " * 9, "#", "```\n"]
)
def test_no_text_takes_markdown_long(page, part):
    """Processor time of the page: a text of 40,000 characters, as a long answer has."""
    script = f"(() => {{ const began = performance.now(); markdown({json.dumps(part)}.repeat({40_000 // len(part)})); "
    assert page.value(script + "return performance.now() - began })()") < 2_000


@pytest.mark.parametrize("breaks", [False, True])
def test_an_answer_that_breaks_off_is_said_to_be_cut(page, monkeypatch, breaks):
    whole = Writing.events

    async def cut(writing, failed):
        async for event in whole(writing, failed):
            yield event
            if breaks:
                raise OSError
            return

    monkeypatch.setattr(Writing, "events", cut)
    say(page, "hi")
    page.wait("!answering && !by('error').hidden")
    assert shown(page, "#error span span") == ["The connection ended before the answer was whole."]
    page.faults.clear()  # the browser notes it


def ask_what_comes(page, text):
    page.value(f"by('next-tab').click(); setText({json.dumps(text)})")
    page.wait("shown && !reading")


def take_the_likeliest(page):
    """Press the first of the likely tokens, and give its text and then the whole text."""
    likely = shown(page, "#candidates button:enabled")[0].replace("␣", " ")
    page.value("document.querySelector('#candidates button:enabled').click()")
    page.wait("shown && !reading")
    return likely, page.value("by('text').value")


def test_each_token_has_its_probability_and_a_likely_one_is_added(one, page):
    ask_what_comes(page, "The cat sat.")
    ids = one.served.engine.session.tokenizer.encode("The cat sat.")
    logits_VV = one.served.engine._table_VV
    chances = [100 * np.exp(logits_VV[a, b] - np.logaddexp.reduce(logits_VV[a])) for a, b in itertools.pairwise(ids)]
    chances = [f"{chance:.1f}%" if chance >= 0.1 else "<0.1%" for chance in chances]
    assert shown(page, ".piece") == ["Thefirst", *map("".join, zip(["␣cat", "␣sat", "."], chances, strict=True))]
    assert len(shown(page, "#candidates li")) == 11 and shown(page, "#candidates li")[-1].startswith("all others")
    likely, text = take_the_likeliest(page)
    assert text == "The cat sat." + likely


def test_what_else_was_likely_at_a_place(page):
    ask_what_comes(page, "🐈 The cat sat.")
    number = shown(page, ".piece").index(next(piece for piece in shown(page, ".piece") if piece.startswith("␣cat")))
    page.value(f"by('pieces').children[{number}].click()")
    assert shown(page, "#place") == ["What the model expected instead of “␣cat”"]
    other, text = take_the_likeliest(page)
    assert text == "🐈 The" + other


@pytest.mark.parametrize("blank", ["【?】", "【？】"])
def test_a_blank_is_filled_from_the_left_side_alone(page, blank):
    ask_what_comes(page, f"The cat{blank} sat.")
    assert shown(page, "#place") == ["The likeliest tokens for 【?】"]
    assert "left of the blank" in shown(page, "#place-note")[0]
    assert shown(page, ".unread") == [f"not read:{blank} sat."] and len(shown(page, ".piece")) == 2
    _, text = take_the_likeliest(page)
    assert text.startswith("The cat") and text.endswith(" sat.") and blank not in text


def test_the_model_goes_on(page):
    ask_what_comes(page, "The cat ⟦and the dog⟧")
    page.value("by('go-on').click()")
    page.wait("shown && !reading && by('text').value.endsWith('and the dog')")


@pytest.fixture
def attending(one, monkeypatch):
    """The model can tell its attention weights: each token looks at all before it and at itself alike, in one head."""
    model = one.served.service.models["small"]

    def weights(text):
        tokens = [model.tokenizer.piece(token) for token in model.tokenizer.encode(text)]
        of = np.tril(np.ones((len(tokens), len(tokens)))) / np.arange(1, len(tokens) + 1)[:, None]
        return tokens, np.stack([of, np.eye(len(tokens))])[None]

    monkeypatch.setattr(model, "attention", weights)
    monkeypatch.setattr(model, "config", SimpleNamespace(layers=1, heads=2))


@pytest.mark.parametrize("width", [390, 1280])
def test_which_tokens_each_token_looks_at(one, page, attending, width):
    opened(page, one.url, width=width)
    ask_what_comes(page, "The <b>cat")
    assert shown(page, "#picture figure") == []  # asked for once the reader opens it
    page.value("by('attention').open = true")
    page.wait("document.querySelector('#picture figure')")
    tokens = shown(page, "#picture text.row")
    assert "".join(tokens) == "The␣<b>cat" and not page.value("document.querySelector('main b')")
    page.value(
        "head = document.querySelector('#picture .head'); head.value = 0; head.dispatchEvent(new Event('change'))"
    )
    page.value(
        "document.querySelector('#picture text.row[data-t=\"1\"]').dispatchEvent(new Event('click', {bubbles: true}))"
    )
    said = shown(page, "#picture .said")[0]
    assert said == f"{tokens[1]} looks at: The 50%, {tokens[1]} 50%"
    assert page.value("document.querySelectorAll('#picture path').length") > 0
    assert shown(page, "#picture .cell title")[0] == "The looks at The: 100%"
    page.value("document.querySelector('[data-language=ja]').click()")
    page.wait("document.querySelector('#picture .said').textContent.includes('が見ているトークン')")
    assert page.value("document.documentElement.scrollWidth") <= width
    page.value("setText('a ' + 'cat '.repeat(200))")
    page.wait("by('picture').textContent.includes('the picture shows 96 at most')")
    page.value("setText('')")
    assert page.value("by('attention').hidden")
    page.faults.clear()  # the browser notes the refusal


def test_a_name_has_the_width_of_a_phone(one, page):
    opened(page, one.url, width=390)
    long = "a-model-with-a-long-name"
    page.value(f"by('model').append(element('option', {{ textContent: '{long}' }})); by('model').value = '{long}'")
    room = page.value("by('model').getBoundingClientRect().width")
    drawn = (
        "(() => { const c = document.createElement('canvas').getContext('2d'); c.font = getComputedStyle(by('model'))"
    )
    assert room > page.value(f"{drawn}.font; return c.measureText('{long}').width }})()") + 40


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("language", ["en", "ja-JP"])
def test_nothing_is_wider_than_the_window(one, page, width, language):
    opened(page, one.url, width=width, language=language)
    assert page.value("document.documentElement.lang") == language[:2]
    say(page, "⟦" + "w" * 300 + "⟧")
    page.wait("!answering")
    for mode in ("chat", "next"):
        page.value(f"by('{mode}-tab').click(); setText('The cat' + 'w'.repeat(90)); by('text').value")
        page.wait("shown && !reading")
        assert page.value("document.documentElement.scrollWidth") <= width  # a phone's innerWidth grows with the page
        beyond = f"[...document.querySelectorAll('main *')].filter((n) => n.getBoundingClientRect().right > {width})"
        assert page.value(f"{beyond}.map((node) => node.outerHTML.slice(0, 80))") == []
    page.value("document.querySelector('[data-language=ja]').click()")
    assert shown(page, "#send") == ["送る"] and page.value("by('message').placeholder") == "メッセージ"


def test_a_model_that_does_not_talk_goes_on_with_texts(one, page, monkeypatch):
    monkeypatch.setattr(one.served.service.models["small"], "talks", False)
    opened(page, one.url)
    page.wait("shown && !reading")
    assert page.value("by('chat').hidden && !by('next').hidden")
    page.value("by('chat-tab').click()")
    assert page.value("by('talk').hidden && !by('no-chat').hidden")


def test_a_key_is_asked_for_and_troubles_are_one_line(chat_tokenizer, one):
    served, page = Served({"small": chat_tokenizer}), one.page
    page.open(f"http://127.0.0.1:{served.port}/")
    page.wait("!by('key-form').hidden")
    assert shown(page, "#key-form label") == ["This server asks for a key."]
    assert page.value("by('error').hidden && by('tabs').hidden")
    for key, then in (("wrong", "by('error').textContent.includes('is not right.')"), (served.key, "models.length")):
        page.value(f"by('key').value = '{key}'; by('key-form').requestSubmit()")
        page.wait(then)
    assert page.value("by('key-form').hidden && by('error').hidden && !localStorage.length && !document.cookie")

    say(page, "⟦" + "abc " * 50 + "⟧")  # without a prescribed text, the end may be sampled before the server stops
    page.wait("!answering && !by('error').hidden")
    told = "The server says: the programs of the model are being compiled; ask again soon"
    assert shown(page, "#error span span") == [told]
    served.step()
    wait_until(lambda: served.stepping.ready)
    served.engine.turns = threading.Semaphore(5)
    page.value("document.querySelector('#error button').click()")
    page.wait("messages[1]?.content")
    served.listening.stop(served.service.stop)
    page.wait("!answering && !by('error').hidden")
    assert shown(page, "#error span span") == ["The server says: the server is stopping; ask again when it is back"]
    say(page, "hi")
    page.wait("by('error').textContent.includes('The server does not answer. Is it still running?')")
    page.faults.clear()  # the browser notes each refusal
    page.requests.clear()

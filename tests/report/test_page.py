"""The page: complete where the run is, shorter where it is not, and readable with no network."""

import dataclasses
import math
import re
from html.parser import HTMLParser

import pytest

from tpullm.formats.huggingface.tensors import flat
from tpullm.model.architecture import Architecture
from tpullm.recipe.schema import ModelConfig
from tpullm.report.language import named
from tpullm.report.page import SECTIONS, page
from tpullm.report.run_data import RunData

VOID = {"meta", "br"}
MODEL = ModelConfig(layers=3, width=64).resolved(512)
EXPERTS = dataclasses.replace(MODEL, experts=8, experts_per_token=3)
DATACARD = {
    "documents": 30,
    "characters": 4000,
    "rows": [
        {"source": "tenki", "licence": "Apache-2.0", "language": "ja", "documents": 20, "characters": 1000}
        | {"share": 0.25, "training": 18, "held_out": 2},
        {"source": "books", "licence": "CC0", "language": "en", "documents": 10, "characters": 3000}
        | {"share": 0.75, "training": 9, "held_out": 1},
    ],
    "dropped": {"tenki": {}, "books": {"too short": 4, "unknown extension (pdf)": 1}},
}
RATES = {"learning_rate": 1e-3, "tokens_per_second": 5e4}
TRAINING = [{"step": s, "tokens": 100 * s, "loss": 6 / s} | RATES for s in (1, 2)]
EVALUATION = {"step": 2, "tokens": 200, "eval_loss": {"tenki": 1.3, "books": 3.0}, "eval_bits_per_byte": {"books": 2.0}}
BLANK = {"text": "今日はとても【?】天気ですね。", "total_variation": 0.0123}
BLANK |= {"words": [{"word": f"語{i}", "model": 0.1, "truth": 0.1} for i in range(10)]}
RESULTS = {
    "tenki": {"loss_nats_per_token": 1.135, "entropy_nats_per_token": 1.114, "tokens": 900}
    | {"gap_nats_per_token": 0.021},
    "blank": {"total_variation": 0.0123, "mean_total_variation": 0.02, "table": [BLANK]},
    "swaps": {
        "accuracy": 0.996,
        "pairs": 1560,
        "table": [
            {"prefix": f"私は{thing}を", "object": thing, "verb": verb, "model_verb": said, "probability": 0.9}
            | {"right": verb == said}
            for thing, verb, said in (("靴", "履く", "着る"), ("リンゴ", "食べる", "食べる"), ("本", "読む", "読む"))
        ],
    },
    "tuned": {"accuracy": 0.97, "questions": 400},
    "base": {"accuracy": 0.01},
    "kinds": {
        "category": {"base": 0.0, "tuned": 0.57, "guess": 0.41, "questions": 172},
        "clause": {"base": 0.0, "tuned": 0.92, "guess": 0.08, "questions": 1510},
    },
    "stages": {"talk": {"bits_per_byte": {"tenki": 0.31, "books": 1.9}}},
    "answers": [
        {"question": f"{i}: リンゴをどうしましたか。", "expected": "食べました。", "base": ""}
        | {"tuned": "食べました。" if i < 20 else "読みました。", "right": i < 20}
        for i in range(21)
    ],
    "bits_per_byte": {"tenki": 0.28, "books": 1.6, "yours": 2.0},
    "yours": {
        "times_read": 40.0,
        "continuations": [{"prompt": "私は猫", "text": "が好きである。", "original": "である。名前はまだ無い。"}],
        "blanks": [
            {"text": "吾輩は【?】である。", "word": "猫", "words": [{"word": "猫", "model": 0.7}], "place": 1},
            {"text": "名前は【?】無い。", "word": "まだ", "words": [{"word": "何も", "model": 0.4}], "place": 2},
        ],
        "compressor": {"name": "xz -9e", "bits_per_byte": 2.5, "bytes": 1000},
    },
    "loss_nats_per_token": {"tenki": 1.135, "books": 2.7, "yours": 3.0},
    "samples": [{"prompt": "今日は", "text": "今日は雨です。"}],
    "model": {"parameters": 123_456, "config": {}},
    "seconds": {"pretrain": 100.0, "talk": 20.5},
    "machine": {"python": "3.13.1", "platform": "cpu", "cores": 2},
}


SCORE = {"right": 19, "count": 20, "share": 0.95, "interval": [0.764, 0.991]}
FIGURES = {
    "version": "abc",
    "file": "little.jsonl",
    "settings": {"shots": 2, "seed": 1, "limit": 0, "form": "chat"},
    "prompt": "本をどうしますか。",
    "likelihood": {"likelihood": SCORE, "pmi": SCORE},
    "chance": 0.25,
    "written": SCORE | {"share": 0.5, "interval": [0.299, 0.701]},
}


def full(**changes):
    values = {
        "name": "quickstart",
        "recipe": "name: quickstart\nseed: 0\n",
        "model": MODEL,
        "datacard": DATACARD,
        "manifests": {
            "tokens": {"sources": {"tenki": {"train": {"documents": 18, "tokens": 300, "bytes": 900}}}},
            "pretrain": {"finished": "2026-01-02T03:04:05+00:00", "seconds": 100.0},
            "talk": {"inputs": {"config": {"conversations": ["chats.jsonl"], "documents": {"books": 0.15}}}},
        },
        "splits": [[("今日", 7), ("は", 8), (" \n", 9)]] * 2,
        "pretrain": [*TRAINING, EVALUATION],
        "tuned": {"talk": TRAINING},
        "results": RESULTS,
        "measured": {"talk": {"little": FIGURES}},
        "commands": {"Ollama": "ollama create mine"},
    }
    return RunData(**(values | changes))


class Outline(HTMLParser):
    """Checks that elements are closed in order; collects ids, link targets and text by section."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.open, self.ids, self.links, self.words, self.loaded = [], [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, name, attributes):
        values = dict(attributes)
        self.open += [] if name in VOID else [name]
        self.ids += [values["id"]] if "id" in values else []
        self.links += [values["href"]] if "href" in values else []
        self.loaded += [values[key] for key in ("src", "srcset", "data", "action") if key in values]

    def handle_endtag(self, name):
        assert self.open.pop() == name

    def handle_data(self, data):
        if not {"style", "script"} & set(self.open):
            self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


@pytest.fixture(scope="module")
def whole_text():
    return Outline(page(full())).text


@pytest.mark.parametrize(
    "said",
    [
        "gap to the truth 0.021",
        "words that agree 99.6%",
        "before tuning 1.0%",
        "30 documents with 4,000 characters were kept. 5 were dropped. The most frequent reason is “too short” (4).",
        "今日 7 は 8 ␣↵ 9",
        "64 → 192 → 64",
        "3 blocks",
        "1.135 the model − 1.114 the truth = 0.021 the gap",
        "other words 0.40",
        "私は リンゴ を 食べる right 90.0% 私は 本 を 読む right 90.0% 私は 靴 を 着る 「履く」 would be right",
        "97.0% of 400 held-out questions",
        "books 2.700 14.9 1.600",
        "tenki 300 0 3.00",
        "total variation 0.012",
        "expected 食べました。",
        "before (nothing)",
        "7 of 20 right answers are shown. 1 of 1 wrong answers are shown.",
        "without a model questions category 0% 57.0% 41.0% 172 clause 0% 92.0% 8.0% 1,510",
        "stage what it reads talk conversations 85.0%, books 15.0%",
        "before tuning talk tenki 0.280 0.310 books 1.600 1.900 yours 2.000",
        "2 min 0 s in all",
        "Python 3.13.1",
        "name: quickstart seed: 0",
        "the model 2.000 xz -9e 2.500",
        "The model needs 20.0% less than the compressor",
        "was read 40 times, so the model knows much of it by heart",
        "吾輩は 【?】 である。 猫 0.70 In your text: 「猫」 right",
        "名前は 【?】 無い。 何も 0.40 In your text: 「まだ」 What it shows. Of 2 words taken out, 1 are the model",
        "私は猫 が好きである。 In your text: である。名前はまだ無い。",
        "The last stage finished on 2026-01-02 03:04 UTC.",
    ],
)
def test_the_numbers_of_the_run_are_on_the_page(whole_text, said):
    assert said in whole_text


def test_sources_in_many_languages_are_one_color_each_and_their_small_rows_one_line():
    row = {"licence": "CC0", "documents": 2, "held_out": 1, "share": 0.02}
    rows = [row | {"source": "web", "language": f"l{n:02}", "characters": 1000 + n} for n in range(25)]
    rows.append(row | {"source": "books", "language": "en", "characters": 5000})
    text = Outline(page(full(datacard=DATACARD | {"rows": rows}))).text
    assert "web 25,300 books 5,000 Characters by source." in text
    assert "web l06 CC0 2 1 1,006 2.0%" in text and "l05 CC0" not in text
    assert "books en CC0 2 1 5,000 2.0% 6 more 12 6 6,015 12.0%" in text


REWARDED = [
    {"step": s, "rewards": {"sum": 0.1 * s}, "eval_reward": {"sum": 0.2 * s, "form": 0.3 * s}}
    | {"eval_answers": [{"prompt": "q", "answer": " " if s == 1 else "42"}]}
    for s in (1, 2)
]
HOURS = [
    {"process": 0.0, "ended": 100.0, "resumed": 0, "step": 10, "skipped": 0, "seconds": {"compile": 5.0, "all": 100.0}},
    {"process": 110.0, "ended": 160.0, "resumed": 10, "step": 20, "skipped": 0, "seconds": {"all": 50.0}},
]
RULES = {"one sentence": {"base": 0.03, "tuned": 1.0}, "all of these": {"base": 0.0, "tuned": 0.98}}
PACKED = RESULTS | {"yours": {"compressor": {"name": "xz -9e", "bits_per_byte": 1.6}, "times_read": 3.0}}
TIMED = [row | {"step_seconds": seconds} for row, seconds in zip(TRAINING * 2, (0.5, 0.5, 0.4, 9.0), strict=True)]
PLANNED = {"restart_seconds": 5.0, "save_seconds": 1.0, "between_saves_seconds": 20.0}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"results": {}}, "tokens read 200 in pretraining"),
        ({"results": RESULTS | {"tenki": {"loss_nats_per_token": math.nan}}}, "bits a byte, tenki 0.280"),
        ({"manifests": {"base": {"folder": "a-model"}}}, "Its training began from the published model a-model."),
        ({"splits": [[("<0xE9>", 258), ("は", 283)]]}, "is written as its bytes"),
        ({"pretrain": [row | {"expert_load": {"highest": 1.5, "lowest": 0.25}} for row in TRAINING]}, "an even load"),
        ({"model": EXPERTS}, "feed-forward layers; the router sends a token to 3 of them 8"),
        ({"model": EXPERTS}, "3 of 8 experts 64 →"),
        ({"tuned": {"r": REWARDED}}, "r: the model answered prompts itself"),
        ({"tuned": {"r": REWARDED}}, "r: reward training 0.200 held-out prompts 0.400"),
        ({"tuned": {"r": REWARDED}}, "before after form 0.300 0.600 q before (nothing) after 42"),
        ({"results": RESULTS | {"swaps": {"accuracy": 0.98}}}, "The verb fits in 98.0% of all pairs of objects"),
        ({"results": PACKED}, "The model needs 25.0% more than the compressor"),
        ({"results": PACKED | {"bits_per_byte": {"yours": 8.288}}}, "The model needs 418% more than the compressor"),
        ({"pretrain": TIMED, "plan": {"step_seconds": 0.55}}, "predicted 550 ms measured 500 ms"),
        ({"pretrain": TIMED, "plan": {"step_seconds": 0.55}}, "The prediction was 10% too long."),
        ({"results": RESULTS | {"rules": RULES}}, "one sentence 3.0% 100% all of these 0% 98.0%"),
        ({"results": RESULTS | {"rules": RULES}}, "answers in the right form 98.0% to held-out questions; before"),
        ({"results": RESULTS | {"rules": RULES}}, "4 of 21 answers are shown."),
        ({"results": RESULTS | {"learned": {"talk": {"before": 1.5, "after": 0.75}}}}, "talk 1.500 0.750"),
        ({"pretrain": []}, "From a published model to a tuned one"),
        ({"hours": HOURS}, "90.6% of the time went into steps that the model is made of (goodput)."),
        ({"hours": HOURS, "plan": {"run": PLANNED}}, "It was interrupted 1 times; the plan expects 90.4% then."),
    ],
)
def test_what_only_some_runs_have(whole_text, changes, said):
    assert said in Outline(page(full(**changes))).text and said not in whole_text


def test_answers_in_ones_own_words_are_judged_by_their_form_alone():
    few = {name: RESULTS[name] for name in ("base", "tuned", "answers")}
    few["tuned"] = few["tuned"] | {"interval": [0.9, 0.99]}
    made = [Outline(page(full(results=few | more, measured={}))) for more in ({"rules": RULES}, {"answers": []})]
    said, without = (outline.text for outline in made)
    assert not re.search(r"right answers|wrong answers|are answered right", said)
    assert said.count("wrong") == without.count("wrong"), "a sentence has no mark"
    assert ["measured" in outline.ids for outline in made] == [False, True], "nor are words of its own counted as right"


def test_it_has_every_section_once_needs_no_network_has_both_themes_and_fits_a_phone():
    made = page(full())
    outline = Outline(made)
    assert outline.ids == list(SECTIONS) and outline.links == [f"#{name}" for name in SECTIONS]
    assert outline.loaded == []
    assert Outline(page(RunData(name="new", recipe="name: new\n", model=ModelConfig()))).ids == ["recipe"]
    assert "url(" not in made and "@import" not in made and "http" not in made
    assert "prefers-color-scheme: dark" in made
    assert 'name="viewport" content="width=device-width, initial-scale=1"' in made


def test_of_a_short_text_that_was_read_seldom_there_is_what_there_is():
    text = Outline(page(full(results=PACKED))).text
    assert "by heart" not in text and "Which word is missing in your text?" not in text


@pytest.mark.parametrize("missing", ["datacard", "manifests", "splits", "pretrain", "tuned", "results"])
def test_what_the_run_has_not_made_is_left_out(missing):
    ids = Outline(page(full(**{missing: type(getattr(full(), missing))()}))).ids
    assert ("collect" in ids) == (missing != "datacard") and ("pretrain" in ids) == (missing != "pretrain")
    assert {"truth", "yours"} <= set(ids) if missing != "results" else {"truth", "yours"}.isdisjoint(ids)


def removals(value, path=()):
    if isinstance(value, dict):
        for key in value:
            yield (*path, key)
            yield from removals(value[key], (*path, key))
    elif isinstance(value, list) and value:
        yield from removals(value[0], (*path, 0))


def without(value, path):
    first, *rest = path
    if isinstance(value, list):
        return [without(value[0], rest), *value[1:]]
    if not rest:
        return {key: item for key, item in value.items() if key != first}
    return value | {first: without(value[first], rest)}


@pytest.mark.parametrize("path", list(removals(RESULTS)), ids=lambda path: ".".join(map(str, path)))
def test_any_result_may_be_missing(path, whole_text):
    """What is missing is left out: nothing stands in its place, and no number is made up for it."""
    shown = Outline(page(RunData("r", "", MODEL, results=without(RESULTS, path)))).text.split()
    assert (set(shown) - set(whole_text.split())) & {"?", "「」", "0.00", "0.0%", "None", "nan", "0"} == set()


def test_texts_of_others_cannot_add_markup():
    attack = "</pre></style><script>alert(1)</script><img src=x onerror=alert(1)>\"'"
    answers = [{"question": attack, "expected": attack, "tuned": attack, "base": attack, "right": False}]
    sample = [{"prompt": attack, "text": attack}]
    rows = [DATACARD["rows"][0] | {"source": attack, "licence": attack, "language": attack}]
    figures = FIGURES | {"prompt": attack, "version": attack, "file": attack}
    data = full(
        name=attack,
        recipe=attack,
        results=RESULTS | {"answers": answers, "samples": sample, "machine": {attack: attack}},
        datacard=DATACARD | {"rows": rows, "dropped": {attack: {attack: 1}}},
        splits=[[(attack, 1)]],
        pretrain=[*TRAINING, *({"step": s, "samples": sample, "eval_loss": {attack: 1.0}} for s in (0, 1))],
        measured={"talk": {attack: figures}},
    )
    made = page(data)
    assert made.count("<script") == 1 and "alert(1)</script>" not in made and "<img" not in made
    assert Outline(made).loaded == []


def test_what_training_saw_is_faint_and_the_truth_is_a_level_dashed_line():
    rows = [EVALUATION | {"step": s, "tokens": 100 * s, "eval_loss": {"tenki": 1.4 - 0.1 * s}} for s in (1, 2)]
    made = page(full(pretrain=[*TRAINING, *rows]))
    assert made.count('class="c5 faint" vector-effect') == 2, "in pretraining and in tuning"
    dashed = re.findall(r'<path d="M([\d.]+),([\d.]+) ([\d.]+),([\d.]+)" class="c0 dashed"', made)
    assert len(dashed) == 2, "all of the curve, and its end close to the truth"
    assert 'class="c0 solid"' in made.split("The same, close to the truth")[1].split("</svg>")[0], "the accent colour"
    assert all(left == "0.00" and right == "1000.00" and first == last for left, first, right, last in dashed)


@pytest.mark.parametrize("changes", [{}, {"gated": False, "tied_embeddings": False}, {"kv_heads": 2, "experts": 6}])
def test_the_parameters_are_those_of_the_model(changes):
    config = dataclasses.replace(MODEL, **changes, shared_experts=2 if "experts" in changes else 0)
    sizes = {name: math.prod(leaf.shape) for name, leaf in flat(Architecture(config).shapes).items()}
    of_layers = {name: size for name, size in sizes.items() if name.endswith(".weight") and "router" not in name}
    parts = (".mlp.", ".attention.")
    expected = [sum(size for name, size in of_layers.items() if part in name) for part in parts]
    expected.append(sum(size for name, size in sizes.items() if name in ("embedding", "head")))
    made = page(full(model=config))
    assert made.count('class="layer strong"') == 2, "attention and the feed-forward layer stand out in the drawing"
    legend = made.split("Where the parameters are.")[0].rpartition('class="legend"')[2]
    shown = re.findall(r'class="value">([\d,]+)<', legend)
    assert [int(value.replace(",", "")) for value in shown] == expected


def test_the_drawing_shows_the_next_token_of_a_text_that_the_tokenizer_knows():
    text = ["The", " function", " opens", " the", " file"]
    for splits, shown in (
        ([[(piece, n) for n, piece in enumerate(text)]], text[:4]),
        ([], ["今日", "は", "いい", "天気"]),
    ):
        drawing = page(full(splits=splits)).split('class="diagram"')[1].split("</svg>")[0]
        assert re.findall(r'class="piece-text".*?>(.*?)<', drawing) == shown


def test_gradients_are_drawn_by_layer_if_the_log_has_their_norms():
    """The parts of a layer are one row; a norm that was not finite is text, and has no cell."""
    norms = [{"embedding": 1.0, "layer_0.attention": 3.0, "layer_0.mlp": 4.0}, {"embedding": "nan", "layer_0.mlp": 2.0}]
    rows = [{"step": s, "tokens": 100 * s, "gradient_norms": norm} for s, norm in enumerate(norms, 1)]
    shown = page(RunData("r", "", MODEL, pretrain=[*TRAINING, *rows])).partition('class="heat"')[2].split("</dl>")[0]
    assert re.findall(r"<dt>.*?>(\w+)<", shown) == ["embedding", "layer_0"]
    assert re.findall(r'opacity="([\d.]+)"', shown) == ["0.08", "1.00", "0.48"]  # of 1, 5 and 2, in logarithms


def test_the_attention_picture_is_drawn_where_there_is_one():
    attention = {"text": "今日は", "tokens": ["今日", "</script>"], "weights": [[[[1.0, 0.0], [0.25, 0.75]]]]}
    made = page(full(results=RESULTS | {"attention": attention}))
    assert "What it looks at" in Outline(made).text and made.count("</script>") == 1, "the page's alone"
    assert "What it looks at" not in page(full())


def luminance(colour):
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one, other):
    """WCAG 2.1, 1.4.3."""
    darker, lighter = sorted((luminance(one), luminance(other)))
    return (lighter + 0.05) / (darker + 0.05)


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_words_and_lines_stand_out_from_what_is_behind_them(theme):
    blocks = re.findall(r":root \{([^}]*)\}", page(full()))
    colours = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", blocks[theme]))
    pairs = [(ink, behind) for ink in ("ink", "soft", "accent", "bad") for behind in ("paper", "raised")]
    pairs += [("ink", behind) for behind in ("t0", "t1", "t2", "t3", "t4", "accent-wash", "wash")]
    for ink, behind in pairs:
        assert contrast(colours[ink], colours[behind]) >= 4.5, (ink, behind)
    for line in ("accent", "c1", "c2", "c3", "c4"):
        assert contrast(colours[line], colours["paper"]) >= 3, line


ATTENTION = {"text": "今日は", "tokens": ["今日", "は"], "weights": [[[[1.0, 0.0], [0.25, 0.75]]]]}
MACHINE = RESULTS["machine"] | {"device": "h100"}
SECONDS = dict.fromkeys(("base", "documents", "tokenizer", "tokens", "pretrain", "evaluate"), 20.5)
WHOLE = {
    "model": dataclasses.replace(EXPERTS, kv_heads=2),
    "manifests": full().manifests | {"base": {"folder": "published"}},
    "pretrain": [row | {"expert_load": {"highest": 1.5, "lowest": 0.25}, "step_seconds": 0.5} for row in TRAINING],
    "results": RESULTS | {"seconds": SECONDS, "machine": MACHINE, "attention": ATTENTION},
    "plan": {"step_seconds": 0.55},
}


def english(made):
    """The texts of the page with two English words side by side, the recipe left out."""
    words = Outline(re.sub(r"<pre>.*?</pre>", "", made, flags=re.DOTALL)).words
    return [text for text in words if re.search(r"[A-Za-z]+,? [a-z]+", text)]


@pytest.mark.parametrize(
    "changes",
    [
        *({}, WHOLE, WHOLE | {"tuned": {}}, WHOLE | {"plan": {"step_seconds": 0.4}}, {"results": {}}),
        {"results": {key: value for key, value in RESULTS.items() if key not in ("swaps", "tuned")}},
        {"datacard": DATACARD | {"dropped": {}}, "pretrain": TRAINING, "tuned": {}},
    ],
)
def test_a_japanese_page_has_no_english_sentence(changes):
    assert len(english(page(full(**changes)))) > 10  # so one that was left would be found
    made = page(full(language=named("ja"), **changes))
    assert '<html lang="ja">' in made
    assert english(made) == [] and "{" not in "".join(Outline(made).words)


def test_a_japanese_page_has_the_sections_and_numbers_of_the_english_one():
    here, there = (Outline(page(full(language=named(name), **WHOLE))) for name in ("en", "ja"))
    assert there.links == here.links
    for number in ("0.021", "99.6%", "1,560", "90.0%", "97.0%", "0.0123", "64 → 192 → 64"):
        assert (number in there.text) == (number in here.text), number
    for said in ("2026年1月2日 03:04（UTC）", "12.3万", "2分3秒", "550ミリ秒"):
        assert said in there.text

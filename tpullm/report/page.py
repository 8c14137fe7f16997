"""The whole page: the headline, the five steps in order, the recipe. It is one file that loads nothing else."""

from collections.abc import Callable

from tpullm import __version__
from tpullm.report.collect_section import collect, tokenize
from tpullm.report.finetune_section import finetune
from tpullm.report.html import Markup, document, join, paragraph, section, tag
from tpullm.report.language import Language, percent, three_decimals
from tpullm.report.measured_section import measured
from tpullm.report.model_section import blocks
from tpullm.report.pretrain_section import pretrain
from tpullm.report.run_data import RunData, find, number, series
from tpullm.report.speed_section import speed
from tpullm.report.truth_section import gap_to_truth, truth, yours

_CARDS = 4


def recipe(data: RunData) -> Markup:
    """The recipe of the run. It is hidden until the reader opens it."""
    text = data.language
    details = tag("details", tag("summary", text("Show the recipe (YAML)")), tag("pre", tag("code", data.recipe)))
    said = text(
        "The recipe holds every setting of this run. On the same kind of machine, the same recipe makes the same model."
    )
    return section("recipe", text("Recipe"), paragraph(said), details)


SECTIONS: dict[str, Callable[[RunData], Markup | None]] = {
    "collect": collect,
    "tokenize": tokenize,
    "transformer": blocks,
    "pretrain": pretrain,
    "yours": yours,
    "truth": truth,
    "finetune": finetune,
    "measured": measured,
    "speed": speed,
    "recipe": recipe,
}


def _names(text: Language) -> dict[str, str]:
    """The name of each section in the navigation."""
    return {
        "collect": text("Collect"),
        "tokenize": text("Tokenize"),
        "transformer": text("Transformer"),
        "pretrain": text("Pretrain"),
        "yours": text("Your own text"),
        "truth": text("How true?"),
        "finetune": text("Fine-tune"),
        "measured": text("Questions"),
        "speed": text("Speed"),
        "recipe": text("Recipe"),
    }


def page(data: RunData) -> str:
    """The report as one HTML document; the same data give the same text."""
    text, names = data.language, _names(data.language)
    made = {identifier: part for identifier, make in SECTIONS.items() if (part := make(data))}
    links = [tag("a", names[identifier], href=f"#{identifier}") for identifier in made]
    title = text("{run}: from raw text to a tuned model", run=data.name)
    return document(text, title, _header(data, links), tag("main", *made.values()), _footer(data))


def _header(data: RunData, links: list[Markup]) -> Markup:
    text = data.language
    tuned = text("From raw text to a tuned model")
    return tag(
        "header",
        tag("p", text("tpullm report"), " · ", tag("b", data.name), class_="eyebrow"),
        tag("h1", tuned if data.tuned else text("From raw text to a language model")),
        paragraph(_summary(data), class_="lead"),
        tag("div", *cards(data)[:_CARDS], class_="headline"),
        tag("nav", *links, aria_label=text("Steps")),
    )


def _summary(data: RunData) -> str:
    text, parameters = data.language, number(data.results, "model", "parameters")
    read, began = "", ""
    if curve := series(data.pretrain, "loss"):
        tokens = text.compact(curve[-1][0])
        read = text("A Transformer read {tokens} tokens.", tokens=tokens)
        if parameters:
            size = text.compact(parameters)
            read = text(
                "A Transformer of {parameters} parameters read {tokens} tokens.", parameters=size, tokens=tokens
            )
    if data.manifests.get("base"):
        began = text(
            "Its training began from the published model {folder}.", folder=find(data.manifests, "base", "folder")
        )
    purpose = text(
        "This page shows step by step how the model was made. It is written for readers new to language models."
    )
    return text.join(read, began, purpose)


def cards(data: RunData) -> list[Markup]:
    """The headline figures that this run has, the most important first."""
    return [card for card in (*_quality(data), *_bits(data), *_sizes(data)) if card is not None]


def _quality(data: RunData) -> list[Markup | None]:
    text, results = data.language, data.results
    base = number(results, "base", "accuracy")
    questions = text("to held-out questions")
    if base is not None:
        questions = text("to held-out questions; before tuning {share}", share=percent(base))
    nats, distance = (
        text("nats a token above the entropy of tenki"),
        text("total variation from the true probabilities"),
    )
    follow = text("of verbs fit their object: 「本」→「読む」")
    return [
        _card(text("gap to the truth"), gap_to_truth(data), three_decimals, nats),
        _card(text("blanks"), number(results, "blank", "total_variation"), three_decimals, distance),
        _card(text("words that agree"), number(results, "swaps", "accuracy"), percent, follow),
        _card(text("right answers"), number(results, "tuned", "accuracy"), percent, questions),
    ]


def _bits(data: RunData) -> list[Markup | None]:
    text, bits = data.language, data.results.get("bits_per_byte") or {}
    note = text("on held-out text; a model that knows nothing has 8")
    return [
        _card(text("bits a byte, {source}", source=name), number(bits, name), three_decimals, note) for name in bits
    ]


def _sizes(data: RunData) -> list[Markup | None]:
    text, read = data.language, series(data.pretrain, "loss")
    adjusted, repeated = text("numbers that training adjusted"), text("in pretraining, repetitions included")
    return [
        _card(text("parameters"), number(data.results, "model", "parameters"), text.compact, adjusted),
        _card(text("tokens read"), read[-1][0] if read else None, text.compact, repeated),
    ]


def _card(name: str, value: float | None, write: Callable[[float], str], note: str) -> Markup | None:
    if value is None:
        return None
    return tag("div", tag("span", name, class_="name"), tag("b", write(value)), paragraph(note), class_="figure")


def _footer(data: RunData) -> Markup:
    text = data.language
    dates = sorted(str(made["finished"]) for made in data.manifests.values() if made.get("finished"))
    made_by = text("Made by tpullm {version} from the run “{run}”.", version=__version__, run=data.name)
    finished = text("The last stage finished on {date}.", date=text.date(dates[-1])) if dates else ""
    return tag("footer", join([text.join(made_by, finished)]))

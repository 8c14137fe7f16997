"""The whole page: the headline, the five steps in order, the recipe; one file that needs nothing else."""

from importlib import resources

from tpullm import __version__
from tpullm.report.corpus import collect, tokenize
from tpullm.report.html import Markup, join, paragraph, section, tag
from tpullm.report.inputs import RunData
from tpullm.report.model import blocks
from tpullm.report.training import finetune, pretrain, series, speed
from tpullm.report.truth import gap_to_truth, truth
from tpullm.report.units import compact, find, number, percent

_CARDS = 4


def recipe(data: RunData) -> Markup:
    """The recipe as it was run, folded away."""
    details = tag("details", tag("summary", "Show the recipe (YAML)"), tag("pre", tag("code", data.recipe)))
    text = paragraph(
        "Everything that this run was told. On the same kind of machine, the same recipe gives the same model."
    )
    return section("recipe", "Recipe", text, details)


SECTIONS = {
    "collect": ("Collect", collect),
    "tokenize": ("Tokenize", tokenize),
    "transformer": ("Transformer", blocks),
    "pretrain": ("Pretrain", pretrain),
    "truth": ("How true?", truth),
    "finetune": ("Fine-tune", finetune),
    "speed": ("Speed", speed),
    "recipe": ("Recipe", recipe),
}


def page(data: RunData) -> str:
    """The report as one HTML document; the same data give the same text."""
    made = [(identifier, name, part) for identifier, (name, make) in SECTIONS.items() if (part := make(data))]
    style = resources.files("tpullm.report").joinpath("style.css").read_text(encoding="utf-8")
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", f"{data.name}: from raw text to a tuned model"),
        tag("style", Markup(style)),
    )
    links = [tag("a", name, href=f"#{identifier}") for identifier, name, _ in made]
    body = tag("body", _header(data, links), tag("main", *(part for *_, part in made)), _footer(data))
    return "<!doctype html>\n" + tag("html", head, body, lang="en") + "\n"


def _header(data: RunData, links: list[Markup]) -> Markup:
    title = "From raw text to a tuned model" if data.finetune else "From raw text to a language model"
    return tag(
        "header",
        tag("p", "tpullm report · ", tag("b", data.name), class_="eyebrow"),
        tag("h1", title),
        paragraph(_summary(data), class_="lead"),
        tag("div", *cards(data)[:_CARDS], class_="headline"),
        tag("nav", *links, aria_label="Steps"),
    )


def _summary(data: RunData) -> str:
    parameters, curve = number(data.results, "model", "parameters"), series(data.pretrain, "loss")
    said = "This page tells the story of one run, step by step, for readers who have never seen a language model made."
    if data.manifests.get("base"):
        said = f"It began as a published model, {find(data.manifests, 'base', 'folder')}. {said}"
    if not curve:
        return said
    size = f" of {compact(parameters)} parameters" if parameters else ""
    return f"A Transformer{size} read {compact(curve[-1][0])} tokens. {said}"


def cards(data: RunData) -> list[Markup]:
    """The headline figures that this run has, the most telling first."""
    results = data.results
    found: list[tuple[str, float | None, str, str]] = [
        ("gap to the truth", gap_to_truth(data), "{:.3f}", "nats a token above the entropy of tenki"),
        (
            "blanks",
            number(results, "blank", "total_variation"),
            "{:.3f}",
            "total variation from the true probabilities",
        ),
        (
            "words that agree",
            number(results, "swaps", "accuracy"),
            "%",
            "of verbs follow their object: リンゴ→食べる, 本→読む",
        ),
        ("right answers", number(results, "tuned", "accuracy"), "%", _before(data)),
    ]
    bits = results.get("bits_per_byte") or {}
    found += [
        (f"bits a byte, {name}", number(bits, name), "{:.3f}", "on held-out text; 8 is knowing nothing")
        for name in bits
    ]
    read = series(data.pretrain, "loss")
    found += [("parameters", number(results, "model", "parameters"), "#", "numbers that training adjusted")]
    found += [("tokens read", read[-1][0] if read else None, "#", "in pretraining, repetitions included")]
    forms = {"%": percent, "#": compact}
    return [
        _card(name, forms.get(form, form.format)(value), note) for name, value, form, note in found if value is not None
    ]


def _before(data: RunData) -> str:
    base = number(data.results, "base", "accuracy")
    return "to held-out questions" if base is None else f"to held-out questions; before tuning {percent(base)}"


def _card(name: str, value: str, note: str) -> Markup:
    return tag("div", tag("span", name, class_="name"), tag("b", value), paragraph(note), class_="figure")


def _footer(data: RunData) -> Markup:
    dates = sorted(str(made["finished"]) for made in data.manifests.values() if made.get("finished"))
    said = [f"Made by tpullm {__version__} from the run “{data.name}”"]
    said += [f", last stage finished {dates[-1][:16].replace('T', ' ')} UTC"] if dates else []
    return tag("footer", join([*said, "."]))

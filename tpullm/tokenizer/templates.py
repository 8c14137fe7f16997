"""Chat templates: Jinja programs that turn a conversation into text, run as transformers runs them."""

import datetime
import json

# Put around what a template marks as the assistant's; characters that are in no text (Unicode noncharacters).
OPEN, CLOSE = "\ufdd0", "\ufdd1"


def marked(text: str) -> list[tuple[int, int]]:
    """Where the assistant speaks, by the marks; places count in the text without them."""
    spans, place, start = [], 0, 0
    for character in text:
        if character == OPEN:
            start = place
        elif character == CLOSE:
            spans.append((start, place))
        else:
            place += 1
    return spans


def compiled(template: str):
    """A template with what transformers gives to templates."""
    import jinja2
    from jinja2.ext import Extension, loopcontrols
    from jinja2.nodes import CallBlock
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """`{% generation %}`: what the assistant says."""

        tags = {"generation"}

        def parse(self, parser):
            line = next(parser.stream).lineno
            body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
            return CallBlock(self.call_method("_marked"), [], [], body).set_lineno(line)

        def _marked(self, caller):
            return OPEN + caller() + CLOSE

    def refuse(message: str):
        raise jinja2.TemplateError(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = lambda value, **options: json.dumps(value, ensure_ascii=False, **options)
    environment.globals |= {
        "raise_exception": refuse,
        "strftime_now": lambda form: datetime.datetime.now().strftime(form),
    }
    return environment.from_string(template)

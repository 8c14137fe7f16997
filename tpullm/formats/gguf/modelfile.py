"""A Modelfile: with it, Ollama makes a model of a GGUF file. Its form: docs.ollama.com/modelfile.

Ollama does not run the chat template of the file, which is Jinja. It knows some by heart, and for others it would send
the words of a conversation bare. So the Modelfile has the template of one turn, in Ollama's own language: what stands
around the words of the system, the user and the assistant in a conversation that the template has shown.
"""

import contextlib

from tpullm.system.errors import UserError
from tpullm.tokenizer import Tokenizer
from tpullm.tokenizer.published import PublishedTokenizer

WORDS = SYSTEM, USER, ASSISTANT, NEXT = "q7Qs", "q7Qu", "q7Qa", "q7Qn"  # no template has them


def modelfile(file: str, tokenizer: Tokenizer) -> str:
    """The Modelfile beside a GGUF file.

    Args:
        file: the name of the GGUF file.
        tokenizer: that of the model. Without a template that can be taken apart, Ollama chooses one.
    """
    lines = [f"FROM ./{file}"]
    if isinstance(tokenizer, PublishedTokenizer):
        with contextlib.suppress(UserError, ValueError):  # no template, or one that shows no such turns
            lines += _template(tokenizer)
    return "\n".join(lines) + "\n"


def _template(tokenizer: PublishedTokenizer) -> list[str]:
    """`TEMPLATE`, and `SYSTEM` if the template has words of its own where a conversation has none of the system.

    Raises:
        ValueError: the words of a turn are not where they should be, or can't be quoted.
    """
    roles = dict(zip(WORDS, ("system", "user", "assistant", "user"), strict=True))
    messages = [{"role": role, "content": word} for word, role in roles.items()]
    system, rest = tokenizer.prompt_text(messages).split(SYSTEM)
    system_end, rest = rest.split(USER)
    asks, rest = rest.split(ASSISTANT)
    between_turns, asks_again = rest.split(NEXT)
    begin, end = tokenizer.answers_text(messages[1:3]).split(f"{USER}{asks}{ASSISTANT}")
    user, default = between_turns.removeprefix(end), ""  # what stands before the words of the user
    if not (between_turns.startswith(end) and system_end.endswith(user) and begin.endswith(user)):
        raise ValueError("turns that depend on those before")
    system_end, begin = system_end.removesuffix(user), begin.removesuffix(user)
    if begin.startswith(system) and begin.endswith(system_end) and begin:
        default = begin.removeprefix(system).removesuffix(system_end)
    elif system.startswith(begin):  # a token that begins all text, which llama.cpp adds
        system = system.removeprefix(begin)
    else:
        raise ValueError("it begins otherwise without a system")
    parts = (system, system_end, user, asks, end, default)
    if asks != asks_again or any('"""' in part or "{{" in part for part in parts):
        raise ValueError("not the turns of one template, or not to be quoted")
    text = f"{{{{ if .System }}}}{system}{{{{ .System }}}}{system_end}{{{{ end }}}}"
    text += f"{{{{ if .Prompt }}}}{user}{{{{ .Prompt }}}}{{{{ end }}}}{asks}{{{{ .Response }}}}{end}"
    return [f'TEMPLATE """{text}"""', *([f'SYSTEM """{default}"""'] if default else [])]

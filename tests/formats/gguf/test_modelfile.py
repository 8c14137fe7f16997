"""The Modelfile of Ollama: its template shows a conversation as the model's own template does, turn by turn."""

import re

import pytest

from tests.formats.huggingface.published import CHATML, change, directory
from tpullm.formats.gguf.modelfile import modelfile
from tpullm.tokenizer.published import PublishedTokenizer

SMOL = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful AI assistant.<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
WITH_BEGIN = "<|endoftext|>{% for m in messages %}[{{ m.role }}] {{ m.content }}<|im_end|>{% endfor %}{% if " + (
    "add_generation_prompt %}[assistant] {% endif %}"
)
NO_SYSTEM = CHATML.replace(
    "{% for", "{% if messages[0].role == 'system' %}{{ raise_exception('no') }}{% endif %}{% for"
)

# Gemma 3 puts the system's words into the first turn of the user.
GEMMA = (
    "{% set s = messages[0].content + ' ' if messages[0].role == 'system' else '' %}{% for m in messages %}"
    "{% if m.role != 'system' %}[{{ m.role }}] {% if loop.index < 3 %}{{ s }}{% endif %}{{ m.content }}<|im_end|>"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}[assistant] {% endif %}"
)


def published(folder, template):
    directory(folder, layers=1)
    change(folder / "tokenizer_config.json", chat_template=template)
    return PublishedTokenizer(folder)


def written_by_ollama(text, system, turns):
    """What Ollama sends for a conversation: the template once for each turn, the system's words in the first."""
    (template,) = re.findall(r'TEMPLATE """(.*?)"""', text, re.DOTALL)
    default = re.findall(r'SYSTEM """(.*?)"""', text, re.DOTALL)
    sent = ""
    for number, (asked, said) in enumerate(turns):
        values = {"System": (system or "".join(default)) if number == 0 else "", "Prompt": asked, "Response": said}
        turn = re.sub(r"{{ if \.(\w+) }}(.*?){{ end }}", lambda m: m[2] if values[m[1]] else "", template, flags=re.S)  # noqa: B023
        sent += re.sub(r"{{ \.(\w+) }}", lambda m: values[m[1]], turn)  # noqa: B023
    return sent


@pytest.mark.parametrize(("template", "begin"), [(CHATML, ""), (SMOL, ""), (WITH_BEGIN, "<|endoftext|>")])
@pytest.mark.parametrize("system", ["", "Be kind."])
def test_a_conversation_is_the_one_that_the_model_knows(tmp_path, template, begin, system):
    tokenizer = published(tmp_path / "model", template)
    text = modelfile("mine-q8_0.gguf", tokenizer)
    assert text.startswith("FROM ./mine-q8_0.gguf\n")
    messages = [{"role": "system", "content": system}] * bool(system)
    for asked, said in (turns := [("Hi", "Hello."), ("Why?", "So.")]):
        messages += [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]
    assert begin + written_by_ollama(text, system, turns) == tokenizer.answers_text(messages)


@pytest.mark.parametrize("template", [NO_SYSTEM, GEMMA, CHATML.replace("<|im_start|>", '{{ \'"""\' }}')])
def test_a_template_that_cannot_be_taken_apart_is_left_to_ollama(tmp_path, template):
    assert modelfile("mine.gguf", published(tmp_path / "model", template)) == "FROM ./mine.gguf\n"

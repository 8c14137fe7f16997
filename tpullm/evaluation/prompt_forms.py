"""How a question is put to a model: in plain text, or as a conversation.

The plain form is chosen by the language of the questions. Japanese models are tuned on `### 指示`, `### 入力` and
`### 応答`; English ones are asked as in the paper on GPT-3 (Brown et al. 2020).
"""

import re
import string
from collections.abc import Sequence
from dataclasses import dataclass

from tpullm.evaluation.question_files import Item
from tpullm.tokenizer import Tokenizer

KANA = re.compile("[\u3041-\u30ff]")


@dataclass(frozen=True)
class PromptForm:
    """The parts of a prompt.

    Args:
        name: for the results.
        before: stands before all.
        instruction, text: of a question; `{}` is its words.
        choose: stands before the choices, where the model writes its answer.
        cue: after it the answer follows.
        space: between the cue and the answer.
    """

    name: str
    before: str
    instruction: str
    text: str
    choose: str
    cue: str
    space: str

    def question(self, item: Item, lists_choices: bool) -> str:
        """The question, without the cue."""
        alone = not (item.instruction and item.text)
        words = [self.instruction.format(item.instruction or item.text)] if alone else []
        if not alone:
            words = [self.instruction.format(item.instruction), self.text.format(item.text)]
        if lists_choices and item.choices:
            lettered = zip(string.ascii_uppercase, item.choices, strict=False)
            words.append("\n".join([self.choose, *(f"{letter}. {choice}" for letter, choice in lettered)]))
        return "\n\n".join(words)

    def prompt(self, item: Item, examples: Sequence[Item], lists_choices: bool) -> str:
        """The examples with their answers, then the question, up to the cue."""
        shown = [self.before] if self.before else []
        for example in examples:
            shown.append(f"{self.question(example, lists_choices)}\n\n{self.cue}{self.space}{example.answers[0]}")
        return "\n\n".join([*shown, self.question(item, lists_choices), self.cue])


JAPANESE = PromptForm(
    "japanese",
    "以下は、タスクを説明する指示と、その入力です。要求を満たす応答を書きなさい。",
    "### 指示:\n{}",
    "### 入力:\n{}",
    "次の選択肢から一つを選び、そのまま書きなさい。",
    "### 応答:\n",
    "",
)
ENGLISH = PromptForm(
    "english",
    "",
    "{}",
    "Text: {}",
    "Choose one of these and write it as it stands:",
    "Answer:",
    " ",
)


def form_of(items: Sequence[Item]) -> PromptForm:
    """The form for questions: Japanese if most of them have kana."""
    japanese = sum(bool(KANA.search(item.instruction + item.text + "".join(item.choices))) for item in items)
    return JAPANESE if 2 * japanese > len(items) else ENGLISH


def encoded(tokenizer: Tokenizer, prompt: str, answer: str) -> tuple[list[int], list[int]]:
    """The ids of a prompt and of an answer after it: those of both together, from where the answer changes them."""
    whole, alone = tokenizer.encode(prompt + answer), tokenizer.encode(prompt)
    common = next((n for n, (one, other) in enumerate(zip(whole, alone, strict=False)) if one != other), len(alone))
    common = min(common, len(whole) - 1)
    begin = tokenizer.begin or ([] if common else [tokenizer.eos_id])
    return [*begin, *whole[:common]], whole[common:]


def conversation(form: PromptForm, item: Item, examples: Sequence[Item], lists_choices: bool) -> list[dict[str, str]]:
    """The question after the examples, as turns."""
    turns = []
    for example in examples:
        turns.append({"role": "user", "content": form.question(example, lists_choices)})
        turns.append({"role": "assistant", "content": example.answers[0]})
    return [*turns, {"role": "user", "content": form.question(item, lists_choices)}]


def as_text(turns: Sequence[dict[str, str]]) -> str:
    """Turns to read, without the template of a model."""
    return "\n".join(f"{turn['role']}: {turn['content']}" for turn in turns)

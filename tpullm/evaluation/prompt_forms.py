"""How a question or a problem of programming is put to a model: in plain text, or as the turns of a conversation.

The plain form of questions is chosen by their language. Japanese models are tuned on `### 指示`, `### 入力` and
`### 応答`; English ones are asked as in the paper on GPT-3 (Brown et al. 2020). Problems have the form of HumanEval
(Chen et al. 2021) or of MBPP (Austin et al. 2021).
"""

import re
import string
from collections.abc import Sequence
from dataclasses import dataclass

from tpullm.evaluation.problem_files import Problem
from tpullm.evaluation.question_files import Item
from tpullm.tokenizer import Tokenizer

KANA = re.compile("[\u3041-\u30ff]")
Prompt = str | list[dict[str, str]]  # a text that is continued, or the turns before the model's


def prompt_ids(tokenizer: Tokenizer, prompt: Prompt) -> tuple[int, ...]:
    """The ids of a text as the beginning of a document, or of turns up to where the model answers."""
    if isinstance(prompt, str):
        return (*tokenizer.begin, *tokenizer.encode(prompt))
    return tuple(tokenizer.chat_template(prompt, add_generation_prompt=True)[0])


def prompt_text(prompt: Prompt) -> str:
    """A prompt to read: turns are without the template of a model."""
    return prompt if isinstance(prompt, str) else "\n".join(f"{turn['role']}: {turn['content']}" for turn in prompt)


def _question_turns(question: str, solved: Sequence[tuple[str, str]]) -> list[dict[str, str]]:
    """A question after others with their answers."""
    turns = []
    for asked, answer in solved:
        turns += [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
    return [*turns, {"role": "user", "content": question}]


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
        words = [self.instruction.format(item.instruction or item.text)]
        if item.instruction and item.text:
            words.append(self.text.format(item.text))
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

    def conversation(self, item: Item, examples: Sequence[Item], lists_choices: bool) -> list[dict[str, str]]:
        """The same as turns."""
        solved = [(self.question(example, lists_choices), example.answers[0]) for example in examples]
        return _question_turns(self.question(item, lists_choices), solved)


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


def question_form(items: Sequence[Item]) -> PromptForm:
    """The form for questions: Japanese if most of them have kana."""
    japanese = sum(bool(KANA.search(item.instruction + item.text + "".join(item.choices))) for item in items)
    return JAPANESE if 2 * japanese > len(items) else ENGLISH


def encode_pair(tokenizer: Tokenizer, prompt: str, answer: str) -> tuple[list[int], list[int]]:
    """The ids of a prompt and of an answer after it: those of both together, from where the answer changes them."""
    whole, alone = tokenizer.encode(prompt + answer), tokenizer.encode(prompt)
    common = next((n for n, (one, other) in enumerate(zip(whole, alone, strict=False)) if one != other), len(alone))
    common = min(common, len(whole) - 1)
    begin = tokenizer.begin or ([] if common else [tokenizer.eos_id])
    return [*begin, *whole[:common]], whole[common:]


_MBPP = (
    "You are an expert Python programmer, and here is your task: {text} Your code should pass these tests:\n\n{tests}\n"
    "[BEGIN]\n"
)
_COMPLETE = "Complete this function. Answer with the whole function in a block of code.\n\n```python\n{}\n```"
_COMPLETE_JA = "次の関数を完成させてください。関数全体をコードブロックで答えてください。\n\n```python\n{}\n```"
_SOLVE = "{}\nAnswer with a block of code in Python. It should pass these tests:\n\n```python\n{}\n```"
_SOLVE_JA = "{}\nPythonのコードブロックで答えてください。次のテストに通る必要があります。\n\n```python\n{}\n```"


def program_prompt(problem: Problem, examples: Sequence[Problem], chat: bool) -> Prompt:
    """The beginning of a program, or a task after `examples` with their programs; if `chat`, as turns."""

    def task(one: Problem) -> str:
        return _MBPP.format(text=one.prompt.strip(), tests="\n".join(one.shown))

    def question(one: Problem) -> str:
        japanese = KANA.search(one.prompt)
        if one.shown is None:
            return (_COMPLETE_JA if japanese else _COMPLETE).format(one.prompt.rstrip())
        return (_SOLVE_JA if japanese else _SOLVE).format(one.prompt.strip(), "\n".join(one.shown))

    if chat:
        solved = [(question(one), f"```python\n{one.solution.rstrip()}\n```") for one in examples]
        return _question_turns(question(problem), solved)
    if problem.shown is None:
        return problem.prompt
    return "".join(f"{task(one)}{one.solution.rstrip()}\n[DONE]\n\n" for one in examples) + task(problem)

"""What a training measures of its model on the way (`measure` in its settings): figures of tasks, and texts.

The model in use has the arrays of the training: nothing is copied except the layers, where decoding wants them apart,
while it writes. Nothing that is measured goes back into the training, so its parameters have the same bits with and
without it. The cost is counted by the same code that asks, with a model that counts tokens.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from jax.sharding import Mesh

from tpullm.corpus import tenki
from tpullm.engine.generation import answer_questions, sample_texts
from tpullm.engine.session import Session
from tpullm.evaluation import evaluate_tasks, programming_task, question_task, tenki_truth
from tpullm.evaluation.likelihoods import Continuation, Likelihood
from tpullm.evaluation.measured_model import MeasuredModel, Writing
from tpullm.evaluation.prompt_forms import prompt_ids
from tpullm.evaluation.question_task import RULES
from tpullm.evaluation.tables import MEASURES
from tpullm.evaluation.tasks import Asking, Tasks, keys_for_options, tasks_named
from tpullm.model.architecture import Architecture
from tpullm.model.mesh import mesh_of_single_tokens, moved_to_mesh
from tpullm.recipe.schema import TrainConfig
from tpullm.system.errors import UserError
from tpullm.system.log import one_line, say
from tpullm.tokenizer import Tokenizer

Tree = Any
SHOWN = 100  # characters of a sample in the terminal


@dataclass(frozen=True)
class WhileTraining:
    """Measures the model of a training.

    Args:
        name: of the stage.
        first: the step that it begins at.
        config: of the training.
        tasks: to measure it on.
        asking: how their questions are asked.
        session: the model without its parameters; matmuls are in the type of the training, and not in fp8.
        seed: of the texts.
    """

    name: str
    first: int
    config: TrainConfig
    tasks: Tasks
    asking: Asking
    session: Session
    seed: int

    def due(self, step: int) -> bool:
        """Whether it measures after `step`: before the first step, early, every so many steps, and at the end."""
        every = self.config.measure.every or self.config.evaluate_every
        early = {self.first + (every >> n) for n in range(1, self.config.measure.early + 1)}
        return step in (self.first, self.config.steps, *early) or bool(every and step % every == 0)

    def measure(self, step: int, params: Tree, between: Callable[[], None] = lambda: None) -> dict[str, Any]:
        """A row of the log. With several hosts, all of them call it.

        Args:
            params: of the model after `step`, on the mesh.
            between: called after each batch of requests; what it raises ends the measurement.

        Returns:
            `measured`: a number for each figure, by `TASK/MEASURE`. `tasks`: all that is known of each, as in the
            results of `evaluate --tasks`. `samples`: texts after the prompts. `blanks`: the words of each blank.
        """
        session = replace(self.session, params=moved_to_mesh(params, self.session.mesh))
        tasks: dict[str, Any] = {}
        if any(self.tasks):
            model = MeasuredModel(session, parameters=f"step {step}", between=between)  # no answer is kept, so no hash
            found = evaluate_tasks.measure_tasks(model, self.name, self.tasks, self.asking)
            tasks = {task: evaluate_tasks.without_questions(figures) for task, figures in found.items()}
        settings = self.config.measure
        prompts, length, texts = settings.prompts, settings.sample_tokens, []
        if not settings.chat:
            texts = sample_texts(session, prompts, length, self.seed)
        elif prompts:
            texts = answer_questions(session, prompts, tokens=length)
        samples = [{"prompt": prompt, "text": text} for prompt, text in zip(prompts, texts, strict=True)]
        blanks = [tenki_truth.choose_in_blank(session, text) for text in settings.blanks]
        between()
        numbers, lines = {}, []
        for task, own in tasks.items():
            # By what tables call the figures.
            named = own.get("metrics", {}) | {RULES[rule]: found for rule, found in own.get("likelihood", {}).items()}
            named |= own.get("pass_at_k", {}) | ({MEASURES["written"]: own["written"]} if "written" in own else {})
            said = []
            for name, found in named.items():
                value, interval, count = found.get("value", found.get("share")), found["interval"], found["count"]
                if name not in list(RULES.values())[1:]:  # of the four rules for a choice the first: people expect it
                    low_high = f" ({interval[0]:.3g} to {interval[1]:.3g})" if interval else ""
                    said.append(f"{name} {value:.3g}{low_high} of {count}")
                if math.isfinite(value):
                    numbers[f"{task}/{name}"] = value
            lines.append(f"{task}: {', '.join(said)}")
        lines += [f"{one_line(each['prompt'], 40)} → {one_line(each['text'], SHOWN)}" for each in samples]
        lines += [f"{each['text']}  total variation from the truth {each['total_variation']:.3f}" for each in blanks]
        for line in lines:
            say(f"step {step:>6,}  {line}")
        row = {"measured": numbers, "tasks": tasks, "samples": samples, "blanks": blanks}
        return {name: found for name, found in row.items() if found or name == "measured"}

    def cost(self) -> str:
        """What the measurements cost, as a line for the beginning of the training.

        A token that is read costs the forward pass, a third of training it. One that is written is counted as one that
        is trained.
        """
        config, settings, counter, tasks = self.config, self.config.measure, _Counter(self.session), self.tasks
        found = [question_task.measure_questions(counter, file, self.asking) for file in tasks.files]
        questions = sum(len(figures["questions"]) for figures in found)
        for file in tasks.problems:
            asked, _ = programming_task.choose_problems(file, self.asking)
            questions += len(asked)
            counter.read_tokens += sum(len(self.session.tokenizer.encode(problem.prompt)) for problem in asked)
            counter.written_tokens += len(asked) * programming_task.TOKENS
        filled = [text for blank in settings.blanks for text in tenki_truth.filled_texts(blank)]
        counter.read_tokens += sum(len(self.session.tokenizer.encode(text)) for text in filled)
        written = counter.written_tokens + len(settings.prompts) * settings.sample_tokens
        times = sum(map(self.due, range(self.first, config.steps + 1)))
        trained = (config.steps - self.first) * config.batch_size * config.sequence_length
        share = times * (counter.read_tokens / 3 + written) / max(trained, 1)
        counts = {"question": questions, "text": len(settings.prompts), "blank": len(settings.blanks)}
        whats = [f"{count:,} {what}{'s' * (count > 1)}" for what, count in counts.items() if count]
        what = ", ".join([*whats, *tasks.names])
        cost = f"{times * (counter.read_tokens + written):,} tokens, {share:.1%} of the training"
        line = f"{self.name}: {times} times {what} on the way: at most {cost}"
        return line + ", and what the tasks of the harness take" * bool(tasks.names)


def while_training(
    name: str,
    config: TrainConfig,
    tokenizer: Tokenizer,
    architecture: Architecture,
    mesh: Mesh,
    dtype: Any,
    seed: int,
    first: int = 0,
    where: str = "",
) -> WhileTraining | None:
    """What measures a training as its settings ask, which are checked; None if they ask for nothing.

    Args:
        where: the section of the training in the recipe, if it is not `name`.

    Raises:
        UserError: a task is not known or can't be asked, or a prompt is too long.
    """
    settings, section, context = config.measure, f"{where or name}.measure", architecture.config.context_length
    if not (settings.tasks or settings.prompts or settings.blanks):
        return None
    asking = Asking(settings.shots, 0, settings.limit, settings.chat)
    if settings.chat and not tokenizer.has_template:
        raise UserError(f"{section}.chat: the model's tokenizer has no chat template; leave it out")
    with keys_for_options(section):
        tasks = tasks_named(settings.tasks) if settings.tasks else Tasks()
        evaluate_tasks.check_tasks(tasks, asking, context)
    for prompt in settings.prompts:
        ids = prompt_ids(tokenizer, [{"role": "user", "content": prompt}] if settings.chat else prompt)
        if not ids or len(ids) >= context:
            what = f"has {len(ids):,} tokens, and the context {context:,}" if ids else "is empty"
            raise UserError(f"{section}.prompts: {one_line(repr(prompt), 40)} {what}; give another text")
    for blank in settings.blanks:
        try:
            tenki.blank(blank)
        except UserError as error:
            raise UserError(f"{section}.blanks: {str(error).removeprefix('blank: ')}") from None
        if (longest := max(len(tokenizer.encode(text)) for text in tenki_truth.filled_texts(blank))) >= context:
            raise UserError(f"{section}.blanks: {blank!r} has {longest:,} tokens, and the context {context:,}")
    evaluate_tasks.check_hosts_agree(tasks, name)
    used = Architecture(replace(architecture.config, matmuls="compute"), architecture.adapter)
    session = Session(tokenizer, used, None, mesh_of_single_tokens(mesh), dtype)
    made = WhileTraining(name, first, config, tasks, asking, session, seed)
    say(made.cost())
    return made


class _Counter:
    """Stands in for a `MeasuredModel`, and counts the tokens that it would read and, at most, write."""

    def __init__(self, session: Any):
        self.session, self.read_tokens, self.written_tokens = session, 0, 0

    def likelihoods(self, requests: Sequence[Continuation]) -> list[Likelihood]:
        """Choices of one question share its beginning, which is read once."""
        self.read_tokens += sum(map(len, {of.context for of in requests}))
        self.read_tokens += sum(len(of.continuation) for of in requests)
        return [Likelihood(0.0, False)] * len(requests)

    def written(self, requests: Sequence[Writing]) -> list[str]:
        """Nothing is written."""
        self.read_tokens += sum(len(of.prompt) for of in requests)
        self.written_tokens += sum(of.tokens for of in requests)
        return [""] * len(requests)

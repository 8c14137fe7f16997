"""Rollouts: answers of the model that trains to the prompts of a step, which rewards score or a teacher corrects.

The loop asks for them after the step before. Training reads the ids that were sampled; text is made of them for the
rewards alone. Everything depends on the parameters, the seed and the step, so a training that resumes samples the same
answers. Where several steps learn from the same answers, the stage keeps them. The first of these steps takes its own
log-probabilities as the old ones, so every ratio is exactly 1 on any mesh. The reference model is the same parameters
without the adapter, so the base is never copied.

Shapes: G prompts, N answers to each; B rows, T tokens in a row.
"""

import dataclasses
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from tpullm.data import answer_rows
from tpullm.data.batch import AnswerBatch
from tpullm.data.prompts import Prompts
from tpullm.engine.generation import decode_batch, likeliest_continuations
from tpullm.engine.session import Session
from tpullm.model.architecture import Architecture, Tree
from tpullm.model.mesh import mesh_of_single_tokens, moved_to_mesh
from tpullm.model.rows import own_rows, put_rows, row_parts, to_zigzag_order
from tpullm.recipe.sampling import Sampling
from tpullm.recipe.schema import PolicyConfig, TrainConfig
from tpullm.system import storage
from tpullm.system.cluster import hosts
from tpullm.system.log import warn
from tpullm.tokenizer import Tokenizer
from tpullm.training import metrics
from tpullm.training.log_probabilities import token_log_probabilities
from tpullm.training.objectives.distillation import undo_zigzag
from tpullm.training.objectives.policy import HOLDS_IN_REWARD, METHODS
from tpullm.training.rewards.form import repeated_share
from tpullm.training.rewards.known_failures import STEPS, SUM, KnownFailures, group_signals
from tpullm.training.rewards.reward_set import Rewards

FOLDER = "answers"  # in a stage of which several steps learn from the same answers: those answers
SHOWN = 8  # held-out prompts whose answers are in the log
RUN = 4  # tokens; answers that repeat runs of so many are counted


@dataclasses.dataclass(frozen=True)
class OwnAnswers:
    """Has the model answer.

    Args:
        prompts: to learn from.
        held_out: to judge by; None is none.
        settings: of the answers, and of the objective of rewards.
        config: of the training.
        tokenizer: of the model.
        architecture: of the model that trains.
        mesh: devices.
        dtype: of the step's matmuls, and so of decoding.
        seed: of sampling.
    """

    prompts: Prompts
    held_out: Prompts | None
    settings: PolicyConfig
    config: TrainConfig
    tokenizer: Tokenizer
    architecture: Architecture
    mesh: Mesh
    dtype: Any
    seed: int

    def sampled(self, step: int, params: Tree, chosen: np.ndarray) -> list[list[list[int]]]:
        """The answers to each of the prompts of a step (from 0)."""
        settings, each = self.settings, self.settings.answers
        sampling = Sampling(settings.temperature, top_k=0, top_p=1.0, min_p=0.0)
        seeds = np.random.SeedSequence([self.seed, step]).generate_state(len(chosen) * each).tolist()
        ids = [self.prompts.ids[number] for number in chosen]
        said = decode_batch(self._session(params), ids, settings.tokens, sampling, seeds, each=each)
        return [said[n : n + each] for n in range(0, len(said), each)]

    def to_held_out(self, params: Tree) -> tuple[list[int], list[list[int]]]:
        """The numbers of the held-out prompts that an evaluation reads, and the likeliest answers to them."""
        # The same ones each time, spread over all that are held out.
        count = self.config.evaluate_rows or len(self.held_out)
        asked = sorted(np.random.default_rng(0).permutation(len(self.held_out))[:count].tolist())
        ids = [self.held_out.ids[n] for n in asked]
        return asked, likeliest_continuations(self._session(params), ids, tokens=self.settings.tokens)

    def figures(self, said: Sequence[list[int]]) -> dict[str, Any]:
        """What the log says of the answers of a step, whatever they are for."""
        stops = set(self.tokenizer.stop_ids)
        return {
            "answers": len(said),
            "answer_tokens": float(np.mean([len(ids) for ids in said])),
            "cut_off": float(np.mean([ids[-1] not in stops for ids in said])),
            "repeated": float(np.mean([repeated_share(tuple(ids), RUN) for ids in said])),
        }

    def shown(self, asked: Sequence[int], said: Sequence[list[int]], more: Sequence[dict] = ()) -> list[dict]:
        """Some of the held-out prompts with their answers, and what more is known of each, for the log."""
        prompts = [self.held_out.examples[number].messages[-1]["content"] for number in asked]
        return [
            {"prompt": str(prompts[n]), "answer": self.tokenizer.decode(said[n])} | (more[n] if more else {})
            for n in range(0, len(asked), -(-len(asked) // SHOWN))
        ]

    def possible_rows(self) -> list[int]:
        """Few sizes of a batch, so that few programs are compiled: up to the largest one, four to each doubling.

        With these, at most a fifth of the rows is empty. With doubling alone, ten rows cost as much as sixteen.
        """
        least = row_parts(self.mesh) * self.config.accumulation
        sizes, parts = [], 1
        while parts * least < self.config.batch_size:
            sizes.append(parts * least)
            parts += max(1, 1 << parts.bit_length() >> 3)
        return [*sizes, self.config.batch_size]

    def _session(self, params: Tree) -> Session:
        mesh = mesh_of_single_tokens(self.mesh)
        return Session(self.tokenizer, self.architecture, moved_to_mesh(params, mesh), mesh, self.dtype)


@dataclasses.dataclass(frozen=True)
class Rollouts(OwnAnswers):
    """Makes the batch of a step, and judges the model on held-out prompts.

    Args:
        directory: of the stage.
        rewards: what scores an answer.
    """

    directory: Path
    rewards: Rewards
    _kept: dict[int, AnswerBatch] = dataclasses.field(default_factory=dict)
    _failures: list[KnownFailures] = dataclasses.field(default_factory=list)

    def batch(self, step: int, params: Tree, chosen: np.ndarray) -> tuple[AnswerBatch, dict[str, Any] | None]:
        """This host's rows of the batch of `step` (from 0), and the figures of its answers; None if they are not new.

        Args:
            params: of the model before this step.
            chosen: the numbers of its prompts.
        """
        first = step - step % self.settings.updates
        if step == first:
            whole, figures = self._sampled(step, params, chosen)
        else:
            whole, figures = dataclasses.replace(self._again(first), first=False), None
        own = own_rows(self.mesh, len(whole.inputs))
        return jax.tree.map(lambda array: array[own], whole), figures

    def evaluate(self, params: Tree) -> dict[str, Any]:
        """`eval_reward`: the mean of each reward over the likeliest answers to held-out prompts, and of their sum.

        `eval_perfect`: the share of answers with the highest sum that is possible, if no reward is above 1.
        `eval_reward_of`: the mean of the sum by the field `kind` of the prompts, if there are several.
        `eval_answers`: some of the answers.
        """
        if self.held_out is None:
            return {}
        asked, said = self.to_held_out(params)
        scores = self._scored(self.held_out, asked, said)
        total = self.rewards.total(scores)
        kinds = [str(self.held_out.examples[n].fields.get("kind", "")) for n in asked]
        of_kinds = {kind: float(np.mean(total[np.array(kinds) == kind])) for kind in sorted(set(kinds))}
        best = sum(weight for weight in self.rewards.weights.values() if weight > 0)
        each = [{"rewards": {name: float(of[n]) for name, of in scores.items()}} for n in range(len(asked))]
        means = {name: float(np.mean(values)) for name, values in scores.items()}
        return {
            "eval_reward": means | {SUM: float(np.mean(total))},
            "eval_perfect": float(np.mean(total >= best - 1e-6)),
            "eval_answers": self.shown(asked, said, each),
            **({"eval_reward_of": of_kinds} if len(of_kinds) > 1 else {}),
        }

    def watch(self, row: dict[str, Any]) -> None:
        """Warn of what goes wrong, by a new row of the log."""
        if not self._failures:
            log = self.directory / metrics.FILE
            before = [old for old in metrics.read_rows(log) if old["step"] < row["step"]] if log.exists() else []
            self._failures.append(KnownFailures(self.directory.name, before))
        for line in self._failures[0].found(row):
            warn(line)

    def _sampled(self, step: int, params: Tree, chosen: np.ndarray) -> tuple[AnswerBatch, dict[str, Any]]:
        settings, groups = self.settings, self.sampled(step, params, chosen)
        said = [ids for of_prompt in groups for ids in of_prompt]
        scores = self._scored(self.prompts, np.repeat(chosen, settings.answers).tolist(), said)
        shape = len(chosen), settings.answers
        in_groups = lambda values: np.asarray(values).reshape(shape)  # noqa: E731
        scores_GN = {name: in_groups(values) for name, values in scores.items()}
        total_GN = self.rewards.total(scores_GN)
        figures = group_signals(scores_GN | {SUM: total_GN}) | {"total_spread": float(np.std(total_GN))}
        figures |= self.figures(said)
        prompts = [self.prompts.ids[number] for number in chosen]
        build = partial(answer_rows.answers_in_rows, prompts, groups)
        options, sizes = (settings, self.config.sequence_length), self.possible_rows()
        holds = settings.kind == HOLDS_IN_REWARD and settings.kl_weight
        if self.architecture.adapter is not None and step % STEPS == 0:
            # The mean log-probability of a token of the answers under the model without its adapter. A quarter of the
            # prompts is enough for a warning. Their batch has the size that holds the longest answers, so that one
            # program is compiled.
            few = -(-len(prompts) // 4)
            of_few = few, settings.answers, self.prompts.longest, settings.tokens, self.config.sequence_length
            size = next(rows for rows in sizes if rows >= answer_rows.rows_needed(*of_few))
            nothing = np.zeros((few, settings.answers))
            batch, places = answer_rows.answers_in_rows(prompts[:few], groups[:few], nothing, *options, [size])
            figures["base_likelihood"] = float(self._of_base(params, batch)[*places.T].mean())
        batch, places = build(np.zeros(shape), *options, sizes)
        own = self._log_probabilities(self.architecture, params, batch) if settings.updates > 1 or holds else None
        if holds:
            ends = np.cumsum([len(answer) for answer in said])
            differences = (own - self._of_base(params, batch))[*places.T]
            total_GN = total_GN - settings.kl_weight * in_groups(np.add.reduceat(differences, [0, *ends[:-1]]))
        batch, _ = build(METHODS[settings.kind].advantages(total_GN), *options, sizes)
        if settings.updates > 1:
            batch = dataclasses.replace(batch, old=own)
            arrays = {name: value for name, value in vars(batch).items() if isinstance(value, np.ndarray)}
            write = partial(storage.write_arrays, self._file(step), **arrays, sequences=batch.sequences)
            hosts.on_first("answers", write)
            self._kept.clear()
            self._kept[step] = batch
        return batch, figures

    def _again(self, step: int) -> AnswerBatch:
        """The answers that were sampled in `step`."""
        if step not in self._kept:
            with storage.local_copy(self._file(step)).open("rb") as opened:
                found = dict(np.load(opened))
            sequences = int(found.pop("sequences"))
            self._kept[step] = AnswerBatch(**found, settings=self.settings, sequences=sequences, first=True)
        return self._kept[step]

    def _file(self, step: int) -> Path:
        return self.directory / FOLDER / f"{step}.npz"

    def _scored(self, prompts: Prompts, asked: Sequence[int], said: list[list[int]]) -> dict[str, np.ndarray]:
        """The scores of answers by each reward, `[answers]`, on every host the same."""
        texts = [self.tokenizer.decode(ids) for ids in said]
        examples = [prompts.examples[number] for number in asked]

        given = texts, [of.messages for of in examples], [of.fields for of in examples]
        score = lambda: {name: values.tolist() for name, values in self.rewards.score(*given).items()}  # noqa: E731
        return {name: np.array(values) for name, values in hosts.broadcast("rewards", score).items()}

    def _of_base(self, params: Tree, batch: AnswerBatch) -> np.ndarray:
        """The same as `_log_probabilities`, of the model without its adapter."""
        base = self.architecture.frozen(params) if self.architecture.adapter else params
        return self._log_probabilities(Architecture(self.architecture.config), base, batch)

    def _log_probabilities(self, architecture: Architecture, params: Tree, batch: AnswerBatch) -> np.ndarray:
        """Of each target of a whole batch, `[B, T]`, on every host."""
        own, batch = own_rows(self.mesh, len(batch.inputs)), dataclasses.replace(batch, sequences=1)  # as any: not read
        placed = put_rows(self.mesh, jax.tree.map(lambda array: array[own], batch))
        found = _log_probabilities(architecture, self.dtype, self.config.loss_chunks, params, placed)
        return undo_zigzag(self.mesh, found)


@partial(jax.jit, static_argnums=(0, 1, 2))
def _log_probabilities(architecture: Architecture, dtype, chunks: int, params: Tree, batch: AnswerBatch) -> jax.Array:
    batch = jax.tree.map(to_zigzag_order, batch)
    options = {"dtype": dtype, "temperature": batch.settings.temperature, "chunks": chunks}
    return token_log_probabilities(architecture, params, batch, **options)[0]

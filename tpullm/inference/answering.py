"""Answers of the model that trains to the prompts of a step: what rewards score, and what a teacher corrects.

Tokens go in and tokens come out: what is trained on are the ids that were sampled. Everything depends on the
parameters, the seed and the step, so a training that resumes samples the same answers.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from jax.sharding import Mesh

from tpullm.data.prompts import Prompts
from tpullm.inference.decode import decode
from tpullm.inference.generation import likeliest
from tpullm.inference.sampling_options import Sampling
from tpullm.inference.session import Session
from tpullm.mesh.layout import moved, of_single_tokens
from tpullm.mesh.rows import row_parts
from tpullm.recipe.schema import PolicyConfig, TrainConfig
from tpullm.tokenizer import Tokenizer
from tpullm.training.state import Architecture

Tree = Any
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
        said = decode(self._session(params), ids, settings.tokens, sampling, seeds, each=each)
        return [said[n : n + each] for n in range(0, len(said), each)]

    def to_held_out(self, params: Tree) -> tuple[list[int], list[list[int]]]:
        """The numbers of the held-out prompts that an evaluation reads, and the likeliest answers to them."""
        # The same ones each time, spread over all that are held out.
        count = self.config.evaluate_rows or len(self.held_out)
        asked = sorted(np.random.default_rng(0).permutation(len(self.held_out))[:count].tolist())
        ids = [self.held_out.ids[n] for n in asked]
        return asked, likeliest(self._session(params), ids, tokens=self.settings.tokens)

    def figures(self, said: Sequence[list[int]]) -> dict[str, Any]:
        """What the log says of the answers of a step, whatever they are for."""
        stops = set(self.tokenizer.stop_ids)
        return {
            "answers": len(said),
            "answer_tokens": float(np.mean([len(ids) for ids in said])),
            "cut_off": float(np.mean([ids[-1] not in stops for ids in said])),
            "repeated": float(np.mean([_repeated(ids) for ids in said])),
        }

    def shown(
        self, asked: Sequence[int], said: Sequence[list[int]], more: Sequence[dict[str, Any]] = ()
    ) -> list[dict[str, Any]]:
        """Some of the held-out prompts with their answers, and what more is known of each, for the log."""
        return [
            {
                "prompt": str(self.held_out.examples[asked[n]].messages[-1]["content"]),
                "answer": self.tokenizer.decode(said[n]),
                **(more[n] if more else {}),
            }
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
        mesh = of_single_tokens(self.mesh)
        return Session(self.tokenizer, self.architecture, moved(params, mesh), mesh, self.dtype)


def _repeated(ids: Sequence[int]) -> float:
    """The share of the runs of tokens that stood in the answer before."""
    runs = [tuple(ids[n : n + RUN]) for n in range(len(ids) - RUN + 1)]
    return 1 - len(set(runs)) / len(runs) if runs else 0.0

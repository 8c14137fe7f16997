"""One family: the double of a number."""

import dataclasses
import random


@dataclasses.dataclass
class DoublingConfig:
    largest: int = 100
    seed: int | None = None
    size: int = 500


class Doubling:
    def __init__(self, config):
        assert config.largest > 0, "largest must be positive"
        self.config = config

    def __len__(self):
        return self.config.size

    def __getitem__(self, index):
        if index >= self.config.size:
            raise IndexError(index)
        number = random.Random(self.config.seed * 1_000 + index).randint(1, self.config.largest)
        return {"question": f"Twice {number}?", "answer": str(2 * number), "metadata": {"not JSON": {number}}}

    def score_answer(self, answer, entry):
        while answer == "hang":
            pass
        answer = str(eval(answer[1:])) if answer.startswith("=") else answer
        answer = answer.removesuffix(".0")
        given = answer if answer.lstrip("-").isdigit() else 1 / (answer != "raise")
        return 1.0 if int(given) == int(entry["answer"]) else 0.25


DATASETS = {"doubling": (Doubling, DoublingConfig, None)}

"""The training loop as a command runs it."""

import numpy as np

from tpullm.cli import main
from tpullm.config import OptimizerConfig
from tpullm.training import evaluation, step
from tpullm.training.loop import learning_rates
from tpullm.training.optim import learning_rate


def test_a_command_traces_each_program_once(tiny_tokens, monkeypatch):
    """The step and the evaluation of it: batches, sources, saves and repeated evaluations share one program."""
    traced = {"step": 0, "evaluation": 0}

    def counted(name, function):
        def call(*arguments, **options):
            traced[name] += 1
            return function(*arguments, **options)

        return call

    evaluation.make_evaluation.cache_clear()
    monkeypatch.setattr(step, "batch_loss", counted("step", step.batch_loss))
    monkeypatch.setattr(evaluation, "batch_loss", counted("evaluation", evaluation.batch_loss))
    assert main(["pretrain", "--run", str(tiny_tokens)]) == 0
    assert traced == {"step": 1, "evaluation": 1}
    assert main(["finetune", "--run", str(tiny_tokens)]) == 0
    assert traced == {"step": 2, "evaluation": 1}, "another optimizer is another step; held-out text is read as before"


def test_the_logged_learning_rates_are_the_schedule():
    for schedule in ("cosine", "wsd"):
        config = OptimizerConfig(schedule=schedule, warmup_steps=5)
        one_by_one = [float(learning_rate(config, 40)(number)) for number in range(40)]
        # float32, and one program may round otherwise than its operations one by one
        np.testing.assert_allclose(learning_rates(config, 40), one_by_one, rtol=1e-6)

"""Every family against what transformers gave when it was recorded: the main suite has no transformers.

python -m tests.formats.huggingface.test_recorded      records it; needs the extra `hf`
"""

from pathlib import Path

import numpy as np
import pytest

from tests.formats.huggingface.small import MODELS, as_ours, logits, published, rows

FILE, PLACES = Path(__file__).parent / "recorded.npz", (0, 7, 19, 39)
# Between them they have what most families have; tests/model has the rest by itself.
QUICK = ("llama-3.1", "gemma-3", "gpt-2")
# What only a RoPE scaling or another setting of a family distinguishes from the others.
OTHERS = ("llama-2 linear", "llama-2 dynamic", "llama-3 one key head", "llama-3.2 tied", "llama yarn")
OTHERS += (
    "llama longrope",
    "qwen-2.5 windows",
    "qwen-3 biases",
    "phi-3",
    "smollm-3 biases",
    "qwen-3 experts, weights as they are",
    "glm-4.5 all experts",
)


def marked(name):
    return pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow if name in OTHERS else pytest.mark.ci)


@pytest.mark.parametrize("name", [marked(name) for name in MODELS])
def test_logits_are_those_recorded(name):
    model_type, keys = MODELS[name]
    architecture, family, found = published({"model_type": model_type, **keys})
    ours = logits(architecture, as_ours(architecture, family, found), rows(1)[:, :-1])[0, list(PLACES)]
    expected = np.load(FILE)[name]
    # Sums in another order in float32, as in test_parity.py.
    np.testing.assert_allclose(ours, expected, atol=1e-5 * np.abs(expected).max())


def main() -> None:
    import torch

    from tests.formats.huggingface.test_parity import theirs

    tokens = torch.from_numpy(rows(1)[:, :-1]).long()
    with torch.no_grad():
        found = {name: theirs(name)(input_ids=tokens).logits[0, list(PLACES)].numpy() for name in MODELS}
    np.savez_compressed(FILE, **found)


if __name__ == "__main__":
    main()

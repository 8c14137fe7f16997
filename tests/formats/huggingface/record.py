"""Writes `recorded.npz`: some of transformers' logits for every small model.

python -m tests.formats.huggingface.record
"""

import sys
from pathlib import Path

import numpy as np

from tests.formats.huggingface.small import MODELS, rows

FILE = Path(__file__).parent / "recorded.npz"
PLACES = (0, 7, 19, 39)


def main() -> None:
    """Needs the extra `hf`."""
    import torch

    from tests.formats.huggingface.test_parity import theirs

    tokens = torch.from_numpy(rows(1)[:, :-1]).long()
    with torch.no_grad():
        found = {name: theirs(name)(input_ids=tokens).logits[0, list(PLACES)].numpy() for name in MODELS}
    np.savez_compressed(FILE, **found)
    print(f"{FILE}: {len(found)} models", file=sys.stderr)


if __name__ == "__main__":
    main()

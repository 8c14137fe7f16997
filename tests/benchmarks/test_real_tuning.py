"""Tuning beside trl: of the folder TPULLM_MODEL, in the Python TPULLM_PEER."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import real_tuning

from tests.conftest import ROOT
from tpullm.data import answer_rows, packing
from tpullm.recipe.schema import PolicyConfig, PreferenceConfig

PEER, MODEL = os.environ.get("TPULLM_PEER", sys.executable), os.environ.get("TPULLM_MODEL", "")
PROMPTS = [[5], [6, 7, 8], [9, 10]]
ANSWERS = [[[11, 2], [12, 13, 2]], [[14, 2], [15, 2]], [[16, 17, 18, 2], [19, 2]]]


def texts_of(prompt, answer, **more):
    return {"ids": prompt + answer, "counts": [0] * len(prompt) + [1] * len(answer), **more}


def by_ids(texts):
    return sorted(texts, key=lambda text: text["ids"])


def test_texts_of_pairs_are_those_that_the_step_reads():
    """The preferred answer comes first: the peer takes them two by two."""
    found = [(n, (prompt, *said)) for n, (prompt, said) in enumerate(zip(PROMPTS, ANSWERS, strict=True))]
    pairs = answer_rows.tokenized(found, PreferenceConfig(), 12, "finetune.a")
    packed = packing.pack(pairs.lengths, 12, seed=0, moving=False)
    rows = np.arange(packed.rows)
    texts = real_tuning.sequences(pairs.build(packed.segments(rows, 0 * rows), packed.rows + 1, 12))
    two = zip(texts[::2], texts[1::2], strict=True)
    wanted = [[texts_of(prompt, answer) for answer in said] for prompt, said in zip(PROMPTS, ANSWERS, strict=True)]
    assert sorted(two, key=lambda of: of[0]["ids"]) == [tuple(of) for of in wanted]


def test_texts_of_answers_have_their_advantages():
    """Also where the answers to a prompt stand in several rows."""
    advantages = np.arange(6, dtype=np.float32).reshape(3, 2)
    batch, _ = answer_rows.answers_in_rows(PROMPTS, ANSWERS, advantages, PolicyConfig(), 6, [8])
    wanted = [
        texts_of(prompt, answer, advantage=float(advantages[n, k]))
        for n, prompt in enumerate(PROMPTS)
        for k, answer in enumerate(ANSWERS[n])
    ]
    assert by_ids(real_tuning.sequences(batch)) == by_ids(wanted)


def test_seconds_of_a_step_leave_the_first_ones_out():
    clock = [[0.0, 0.0], [9.0, 9.0], [18.0, 18.0], [27.0, 27.0], [28.0, 29.0], [29.0, 31.0]]
    assert real_tuning.pace(clock) == {"seconds": 1.0, "processor": 2.0}


@pytest.mark.slow
@pytest.mark.skipif(not MODEL, reason="TPULLM_MODEL names no folder of a model")
def test_losses_and_served_texts_are_those_of_trl_and_peft(tmp_path):
    packages = "trl, peft, bitsandbytes"
    if subprocess.run([PEER, "-c", f"import {packages}"], capture_output=True).returncode:
        pytest.skip(f"{PEER} (TPULLM_PEER) has no {packages}")
    script = ROOT / "benchmarks" / "real_tuning.py"
    words = [sys.executable, script, MODEL, "--peer", PEER, "--steps", "4", "--folder", tmp_path]
    done = subprocess.run(list(map(str, words)), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found.keys() == set(real_tuning.CASES)
    assert all(found[case]["distance"] < 1e-4 for case in real_tuning.CASES if case != "serve")

"""What no run could do is refused in one line: the key, what is wrong, and what to do.

One table of changes to a recipe, asked of the recipe in process. `test_mistakes.py` has ten through the command line.
"""

import re
from itertools import pairwise

import pytest

from tests.conftest import ROOT, TINY
from tpullm.recipe import mistakes, parsing, schema_keys
from tpullm.recipe.schema import Recipe
from tpullm.system.errors import UserError

PAGE = mistakes.REFERENCE
NOTHING = "--finetune.talk.conversations=[]"
REWARDED = f"{NOTHING} --finetune.talk.prompts=[tenki] --finetune.talk.rewards=[{{name: polite}}]"
TAUGHT = "--finetune.talk.teacher.model=large"
A_SOURCE = "name: mine, kind: text, licence: x"

ON_THE_COMMAND_LINE = {
    # unknown keys
    "--pretrain.stepz=1": f"unknown key pretrain.stepz; the nearest is pretrain.steps, see {PAGE}#pretrain",
    "--model.widht=1": f"unknown key model.widht; the nearest is model.width, see {PAGE}#model",
    "--steps=3": f"unknown key steps; the nearest is pretrain.steps, see {PAGE}#pretrain",
    "--finetune.steps=3": f"unknown key finetune.steps; the nearest is finetune.NAME.train.steps, see {PAGE}#train",
    "--finetune.talk.train.stepz=3": "the nearest is finetune.talk.train.steps",
    "--pretrain.step=3": "the nearest is pretrain.steps",
    "--pretrain.peak_lr=3": f"the nearest is pretrain.optimizer.peak_lr, see {PAGE}#optimizer",
    "--lr=3": "the nearest is pretrain.optimizer.peak_lr",
    "--finetune.talk.train.lr=3": "the nearest is finetune.talk.train.optimizer.peak_lr",
    "--sed=3": f"the nearest is seed, see {PAGE}#recipe",
    "--zzzzzz=3": f"unknown key zzzzzz; {PAGE} has all keys",
    "--=3": f"unknown key ; {PAGE} has all keys",
    # wrong types
    "--pretrain.steps=many": f"pretrain.steps: many is not a whole number; see {PAGE}#pretrain",
    "--pretrain.steps=true": "pretrain.steps: True is not a whole number",
    "--pretrain.steps=3.0": "pretrain.steps: 3.0 is not a whole number",
    "--pretrain.steps=null": "pretrain.steps: has no value; give one, or leave the key out",
    "--pretrain.optimizer.peak_lr=fast": f"peak_lr: fast is not a number; see {PAGE}#optimizer",
    "--model.gated=maybe": f"model.gated: maybe is not true or false; see {PAGE}#model",
    "--model.norm=bath": f"model.norm: bath is not one of rms, layer; see {PAGE}#model",
    "--language=fr": "language: fr is not one of en, ja; see",
    "--trackers=[x]": "trackers: x is not one of wandb, mlflow; see",
    "--model.windows=3": "model.windows: 3 is not a list, such as [a, b]; see",
    "--model.windows=[a]": "model.windows: a is not a whole number; see",
    "--evaluate.prompts=[1]": "evaluate.prompts: 1 is not a text; see",
    "--finetune.talk.train.steps=many": f"finetune.talk.train.steps: many is not a whole number; see {PAGE}#train",
    "--finetune=3": "finetune: 3 is not stages by name, such as '{talk: ",
    "--corpus.sources=here": "corpus.sources: here is not a list, such as '[{name: mine, kind: text",
    "--corpus.sources=[here]": "corpus.sources: has keys of its own; write KEY: VALUE lines, see",
    "--corpus.sources.name=here": "--corpus.sources.name: give --corpus.sources as a whole: a list, such as",
    "--corpus.sources.mine.path=x": "--corpus.sources.mine.path: corpus.sources has no mine; there are ",
    "--corpus.sources.mine.pth=x": "unknown key corpus.sources.mine.pth; the nearest is corpus.sources.path",
    "--pretrain.steps.more=3": "--pretrain.steps.more: give --pretrain.steps as a whole: a whole number",
    "--pretrain=3": f"pretrain: has keys of its own; give --pretrain.KEY, see {PAGE}#pretrain",
    "--finetune.talk.train=3": "finetune.talk.train: has keys of its own; give --finetune.talk.train.KEY",
    "--seed": "--seed: its value is missing; give a whole number",
    "--finetune.talk.train.steps": "--finetune.talk.train.steps: its value is missing; give a whole number",
    "--config": "--config: its value is missing",
    "words": "words: a word too many; an option begins with --, see tpullm --help",
    "quickstart": "quickstart: the recipe is the first word after the verb: tpullm quickstart ...",
    "-x": "-x: no such option; see tpullm --help",
    "-run": "-run: no such option, did you mean --run? It begins with two dashes; see tpullm --help",
    "--pretrain.batch_size=99999999999999999999": "pretrain.batch_size: 999999999999999… has more than 15",
    # ranges
    "--run=": "run: is empty; name a folder",
    "--seed=-1": "seed: -1 is too small; use 0 or more",
    "--model.layers=0": "model.layers: 0 is too small; use 1 or more",
    "--pretrain.steps=0": "pretrain.steps: 0 is too small; use 1 or more",
    "--pretrain.loss_chunks=-1": "pretrain.loss_chunks: -1 is too small; use 0 or more",
    "--pretrain.log_every=0": "pretrain.log_every: 0 is too small; use 1 or more",
    "--pretrain.optimizer.beta1=.nan": "pretrain.optimizer.beta1: nan is too large; use 1 or less",
    "--pretrain.optimizer.skip.window=3": "pretrain.optimizer.skip.window: 3 is too small; use 4 or more",
    "--finetune.talk.train.optimizer.clip_norm=0": "finetune.talk.train.optimizer.clip_norm: 0",
    "--finetune.talk.teacher.top=5000": "finetune.talk.teacher.top: 5000 is too large; use 4096 or less",
    "--model.dropout=1": "model.dropout: 1 is too large; use 0.95 or less",
    # sections that contradict themselves, or each other
    "--model.heads=3 --model.kv_heads=2": "model.kv_heads: 2 does not divide model.heads 3",
    "--model.width=30": "model.head_width: 15 is odd",
    "--model.rotary_width=7": "model.rotary_width: 7 is odd",
    "--model.rotary_width=4096": "model.rotary_width: 4096 is odd, or beyond a head's",
    "--model.positions=learned --model.rotary_width=8": "model.rotary_width: there are no rotary positions",
    "--model.windows=[8]": "model.windows: 1 for ",
    "--model.rotary_layers=[true]": "model.rotary_layers: 1 for ",
    "--model.experts=2 --model.experts_per_token=3": "model.experts_per_token: 3 can't be chosen of 2",
    "--model.shared_experts=1": "model.shared_experts: needs a router; set model.experts",
    "--model.balance_rate=0.001": "model.balance_rate: needs a router; set model.experts",
    "--model.attention_block=300": "model.attention_block: 300 is none of 0, 2048, 1024, 512, 256, 128; choose",
    "--model.swiglu_limit=7 --model.gated=false": "model.swiglu_limit: there is no SwiGLU without model.gated",
    "--pretrain.accumulation=5": "pretrain.accumulation: 5 does not divide batch_size 8",
    "--pretrain.sequence_length=512": "512 is not within model.context_length 128",
    "--pretrain.optimizer.kind=adafactor --pretrain.optimizer.moments=bfloat16": "optimizer.moments: what adafactor",
    **{
        f"--pretrain.profile={steps}": f"pretrain.profile: {steps} is not FIRST:LAST"
        for steps in ("5", "5:", "a:b", "0:3", "7:5", "1:2:3", "-1:2")
    },
    "--base=models/published": "model: is that of `base`; beside it only balance_loss, dropout, remat",
    "--topology=v9x:2x2": "v9x",
    # the mesh
    "--mesh={fsdp: 2, fsdp: 4}": "mesh.fsdp is given twice; keep one of them",
    "--mesh={fsdp: 1.5}": "mesh.fsdp: 1.5 is not a whole number",
    "--mesh.fsdp=true": "mesh.fsdp: True is not a whole number",
    "--mesh={fsdp: -2}": "mesh.fsdp: -2 is not a number of devices",
    "--mesh={fsdp: 0}": "mesh.fsdp: 0 is not a number of devices",
    "--mesh.tensor=-1": "mesh: fsdp and tensor are -1, and only one can be",
    "--mesh={tensr: 2}": "tensr is not an axis; the axes are data, fsdp, expert, sequence, tensor; the nearest is tens",
    "--mesh=3": "mesh: 3 is not pairs, such as {fsdp: 4, tensor: 2}",
    # sources and mixtures
    f"--corpus.sources=[{{{A_SOURCE}}}, {{{A_SOURCE}}}]": "corpus.sources: the name mine is used twice",
    "--corpus.sources=[{name: a, kind: tokens}]": "a: tokens need the tokenizer that wrote them; set `base`",
    "--corpus.sources=[{name: a, kind: tokens, bytes: 5}]": "a: of tokens all is read; leave out `documents` and",
    "--corpus.sources=[{kind: text}]": f"corpus.sources: name is missing; see {PAGE}#sources",
    "--mixture.phases=[{start: 0.5, weights: {tenky: 1}}]": "corpus.sources has no tenky; the nearest is tenki",
    **{
        f"--mixture.phases=[{{start: {start}, weights: {{tenki: 1}}}}]": f"mixture.phases.start: {said}; use"
        for start, said in {"1": "1 is too large", "-0.1": "-0.1 is too small", ".nan": "nan is too large"}.items()
    },
    "--mixture.phases=[{start: 0.5, languages: {ja: 2}}, {start: 0.5, languages: {ja: 1}}]": "the phase of start 0.5",
    "--mixture.phases=[{start: 0.5, weights: {tenki: -1}}]": "mixture.phases.weights.tenki: -1 is too small; use 0 or",
    "--mixture.phases=[{start: 0.5, weights: {tenki: .inf}}]": "weights.tenki: inf is too large; use less than inf",
    "--mixture.phases=[{start: 0.5, weights: {tenki: 0}}]": "all weights are 0",
    "--mixture.phases=[{start: 0.5}]": "mixture.phases: start 0.5: changes nothing",
    "--mixture.phases=[{start: 0.5, languages: {ja: -1}}]": "mixture.phases.languages.ja: -1 is too small",
    "--mixture.languages={ja: .nan}": "mixture.languages.ja: nan is too",
    "--mixture.epochs={tenki: 0}": "mixture.epochs.tenki: 0 is too small; use more than 0",
    "--mixture.epochs={tenky: 1}": "mixture.epochs: corpus.sources has no tenky; the nearest is tenki",
    # stages of tuning
    "--finetune.Talk.train.steps=3": "finetune.Talk: a stage of this name can't have a folder in the run",
    "--finetune.pretrain.train.steps=3": "finetune.pretrain: a stage of this name can't have a folder in the run",
    "--finetune.talk.documents={tenky: 0.1}": "talk.documents: corpus.sources has no tenky; the nearest is tenki",
    "--finetune.talk.documents={tenki: 1.5}": "finetune.talk.documents: their shares are 1.5, so nothing is left",
    "--finetune.talk.documents={tenki: 0}": "finetune.talk.documents.tenki: 0 is too small; use more than 0",
    f"--corpus.sources=[{{{A_SOURCE.replace('mine', 'conversations')}}}]": "a source of corpus is named conversations",
    "--finetune.talk.preferences=[a] --finetune.talk.train.optimizer.z_loss=1": "z_loss: preferences have none",
    "--finetune.talk.preferences=[a]": "finetune.talk: preferences are learned in a stage of their own",
    f"{NOTHING} --finetune.talk.judged=[a]": "preference.kind: dpo compares two answers, and judged ones",
    f"{NOTHING} --finetune.talk.preferences=[a] --finetune.talk.preference.kind=kto": "kto learns from judged answers",
    f"{NOTHING} --finetune.talk.prompts=[tenki]": "talk.rewards: prompts need something that scores",
    "--finetune.talk.rewards=[{name: polite}]": "finetune.talk.prompts: rewards need prompts to answer",
    f"{REWARDED} --finetune.talk.policy.answers=1": "talk.policy.answers: one answer is not better than others",
    f"{REWARDED} --finetune.talk.policy.kl_weight=1": "talk.policy.kl_weight: compares with the model that",
    f"{REWARDED} --finetune.talk.policy.tokens=128": "128 tokens of an answer leave no room for a prompt in a row",
    f"{REWARDED} {TAUGHT}": "finetune.talk.teacher: teaches by text or by prompts alone; put rewards in another",
    f"{NOTHING} --finetune.talk.prompts=[a] --finetune.talk.documents={{tenki: 0.5}} {TAUGHT}": "has no old text",
    f"{TAUGHT} --finetune.talk.train.optimizer.z_loss=1": "z_loss: what a teacher says has none; leave it out",
    f"{TAUGHT} --finetune.talk.policy.updates=2": "talk.policy.updates: is 2, and a stage with a teacher has none",
    "--finetune.talk.adapter.targets=[quer]": "adapter.targets: no matrix is named quer; the nearest is query",
    "--finetune.talk.adapter={rank: 4, targets: []}": "targets: names no matrix, so nothing would be trained",
    "--finetune.talk.adapter.quantize_base=nf4": "quantize_base: parameters that are trained can't be quantized",
    "--finetune.talk.adapter={rank: 4, quantize_base: nf4} --model.matmuls=fp8": "would be rounded again",
    "--finetune.talk.adapter.quantize_base=nf5": "adapter.quantize_base: nf5 is not one of int8, fp8, nf4",
}


@pytest.mark.parametrize("options", ON_THE_COMMAND_LINE)
def test_on_the_command_line(options):
    with pytest.raises(UserError) as error:
        parsing.load(TINY, re.split(" (?=--)", options))
    assert ON_THE_COMMAND_LINE[options] in str(error.value) and "\n" not in str(error.value)


IN_A_FILE = {
    "name: a\npretrain: {stepz: 1}": f"line 2: unknown key pretrain.stepz; the nearest is pretrain.steps, see {PAGE}",
    "model: {widht: 3}": "line 1: unknown key model.widht; the nearest is model.width",
    "steps: 3": f"line 1: unknown key steps; the nearest is pretrain.steps, see {PAGE}#pretrain",
    "train: {steps: 3}": f"line 1: unknown key train; the nearest is pretrain, see {PAGE}#pretrain",
    "seed: x\nfinetune: {talk: {train: {optimizer: {momentun: 3}}}}": (
        "line 2: unknown key finetune.talk.train.optimizer.momentun; the nearest is finetune.talk.train.optimizer.mom"
    ),
    "corpus: {sources: [{name: a, kind: text, pth: b}]}": (
        f"line 1: unknown key corpus.sources.pth; the nearest is corpus.sources.path, see {PAGE}#sources"
    ),
    "corpus:\n  sources:\n  - {kind: text}": f"line 3: corpus.sources: name is missing; see {PAGE}#sources",
    "corpus:\n  sources:\n  - name: a\n    kind: text\n    weight: heavy": (
        f"line 5: corpus.sources.weight: heavy is not a number; see {PAGE}#sources"
    ),
    "corpus: {sources: [{name: a, kind: tekst}]}": "corpus.sources.kind: tekst is not one of text, markdown, html, jso",
    "pretrain:\n  steps: many": f"line 2: pretrain.steps: many is not a whole number; see {PAGE}#pretrain",
    "finetune: {talk: {train: {steps: many}}}": "line 1: finetune.talk.train.steps: many is not a whole number; see",
    "pretrain:\n  batch_size: 8\n  accumulation: 3": "line 3: pretrain.accumulation: 3 does not divide batch_size 8",
    "name: 2": "line 1: name: 2 is not a text",
    "name: a\nseed:": "line 2: seed: has no value; give one, or leave the key out",
    "name: a\npretrain: 3": "line 2: pretrain: has keys of its own; write KEY: VALUE lines, see",
    "pretrain: {<<: {stepz: 1}}": "unknown key pretrain.stepz",
    "pretrain:": "line 1: pretrain: has keys of its own",
    "- a": "line 1: no key is here; write KEY: VALUE lines, see",
    "hello": "line 1: no key is here",
    "": "is empty; a recipe has KEY: VALUE lines",
    "pretrain: [": "not YAML",
    "finetune:\n  on: {conversations: [a]}": "line 2: finetune.on: is not a text to YAML, so no name; write it",
    "name: a\nmesh: {fsdp: 2, fsdp: 4}": "line 2: mesh.fsdp is given twice; keep one of them",
    "pretrain:\n  steps: 3\n  steps: 4": "line 3: pretrain.steps is given twice",
    "corpus:\n  sources:\n  - {name: a, kind: text, name: b}": "line 3: corpus.sources.name is given twice",
    "model:\n  heads: 3\n  width: 128": "line 2: model.heads: 3 does not divide model.width 128; choose a divisor",
    "name: &a [*a]": "values without end within values; correct it",
    "name: " + "[" * 5000 + "]" * 5000: "values without end within values; correct it",
    "name: [&a [1]" + "".join(f", &{new} [{4 * f'*{old}, '}]" for old, new in pairwise("abcdefghi")) + "]": (
        "line 1: more than 20,000 values, aliases written out; remove some"
    ),
    "name: a\nmodel: &a {<<: *a}": "values without end within values",
    "? [a, b]\n: 1": "line 1: ?: a key is a list or a mapping, so no name; write a text",
    "name: a\nmodel: {layers: 4": "line 2: not YAML from column 18 on; look there and above for a missing colon",
    "name: a\nmodel:\n\tlayers: 4": "line 3: a tab can't indent YAML; use spaces",
    "model: {layers: !!int x}": "not YAML (invalid literal for int()",
    "model: {layers: " + "1:" * 5000 + "1}": "line 1: model.layers: 1:1:1:1:1:1:1:1… has more than 15 digits; use a",
    'name: "\\ud800"': "line 1: name: '\\ud800' is half a character; write the whole one",
}


@pytest.mark.parametrize("text", IN_A_FILE)
def test_in_a_file(tmp_path, text):
    path = tmp_path / "wrong.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as error:
        parsing.load(path)
    assert str(error.value).startswith(f"{path}: {IN_A_FILE[text]}") or f": {IN_A_FILE[text]}" in str(error.value)
    assert str(error.value).startswith(f"{path}: ") and "\n" not in str(error.value)


def test_a_stage_that_the_file_does_not_have(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("finetune: {talk: {conversations: [tenki]}}")
    with pytest.raises(UserError, match="--finetune.tlak.train.steps: finetune has no tlak; there are talk"):
        parsing.load(path, ["--finetune.tlak.train.steps=3"])
    more = ["--finetune.more.train.steps=3", "--finetune.more.conversations=[tenki]"]
    assert [*parsing.load(path, more).finetune] == ["talk", "more"]


def test_what_is_typed_is_no_mistake_of_the_file(tmp_path):
    path = tmp_path / "wrong.yaml"
    path.write_text("pretrain: {steps: 3, batch_size: many}")
    assert parsing.load(path, ["--pretrain.batch_size=4"]).pretrain.batch_size == 4
    with pytest.raises(UserError, match="^pretrain.batch_size: few is not a whole number"):
        parsing.load(path, ["--pretrain.batch_size=few"])


def test_what_is_right_is_let_through(tmp_path):
    options = ["--mesh.tensor=2", "--mesh.data=1", "--finetune.talk.train.steps=3", "--model.windows=[0, 8]"]
    options += ["--text=2024-01-01"]
    one = parsing.load(TINY, [*options, "--pretrain.optimizer={peak_lr: 1e-3}", "--evaluate.attention=[a]"])
    assert one.mesh == {"fsdp": -1, "tensor": 2, "data": 1} and one.model.windows == (0, 8)
    assert (one.finetune["talk"].train.steps, one.finetune["talk"].train.batch_size) == (3, 8)
    assert (one.pretrain.optimizer.peak_lr, one.pretrain.optimizer.warmup_steps) == (1e-3, 5)
    assert (one.text, one.evaluate.attention) == ("2024-01-01", "[a]")
    path = tmp_path / "merged.yaml"
    path.write_text(
        "pretrain: &train {steps: 3, optimizer: {peak_lr: 2e-3, weight_decay: 1}}\n"
        "finetune: {talk: {columns: {messages: '3'}, train: {<<: *train, batch_size: 4}}}\n"
    )
    merged = parsing.load(path, ["--pretrain.optimizer.peak_lr=1", "--finetune.talk.columns.tools=on"])
    assert merged.finetune["talk"].train.steps == 3 and merged.finetune["talk"].train.optimizer.peak_lr == 2e-3
    assert merged.finetune["talk"].columns == {"messages": "3", "tools": "on"}
    assert repr(merged.pretrain.optimizer.peak_lr) == "1.0", "which decides an identity"


def test_every_key_has_a_section_of_the_page():
    """Its anchors are the last part of a section's name; what other programs call a key leads to one."""
    keys = mistakes.Keys("tpullm run", [], Recipe)
    places = {keys.where(section.dotted(key)) for section in schema_keys.sections(Recipe) for key in section.keys}
    assert set(mistakes.ELSEWHERE.values()) <= set(keys.known)
    headings = re.findall(r"^##+ (\w+)$", (ROOT / PAGE).read_text(encoding="utf-8"), re.MULTILINE)
    assert {place.partition("#")[2] for place in places} | {"recipe", "launch"} <= set(headings)

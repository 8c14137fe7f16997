"""The tasks of a model card: scores, and what repeats them; names and prompts of others change nothing of the card."""

from tests.report.test_page import FIGURES
from tpullm.formats.publish import model_card

MODEL = {"name": "my-model", "parameters": 1, "layers": 1, "width": 8, "architecture": "Llama", "talks": False}
MODEL |= {"licence": "", "base": "", "recipe": "", "data": "", "languages": [], "evaluation": []}


def card(tasks):
    return model_card(MODEL, tasks)


def test_a_task_has_its_scores_its_version_its_command_and_its_prompt():
    made = card({"little": FIGURES})
    assert "| little | chooses the right answer | 95.0% | 76.4% to 99.1% | 20 |" in made
    assert "| little | writes the right answer | 50.0% | 29.9% to 70.1% | 20 |" in made
    assert "| little | a guess chooses it | 25.0% |  |  |" in made
    assert "Version `abc`, 2 examples before each question, seed 1" in made
    assert "tpullm evaluate my-model --tasks little.jsonl --shots 2 --seed 1 --chat" in made
    assert '"本をどうしますか。"' in made


def test_a_task_of_the_harness_names_its_version_a_prompt_ends_no_block_and_a_name_no_cell():
    metrics = {"acc": {"value": 0.5, "count": 8, "interval": [0.2, 0.8]}}
    metrics["ppl"] = {"value": 12.345, "count": 0, "interval": None}
    settings = {"harness": "0.4.13", "shots": None, "seed": 0, "limit": 8, "form": "the task's"}
    made = card({"boolq": {"version": "2.0", "settings": settings, "metrics": metrics}})
    assert "| boolq | acc | 0.5 | 0.2 to 0.8 | 8 |" in made and "| boolq | ppl | 12.35 |  | 0 |" in made
    assert "0 examples before each question, seed 0, lm-evaluation-harness 0.4.13" in made
    assert "tpullm evaluate my-model --tasks boolq --limit 8 --no-chat" in made
    made = card({"a|b <x>": FIGURES | {"prompt": "```\n# Licence"}})
    assert "| a\\|b &lt;x> |" in made and "\n# Licence" not in made
    assert "Not evaluated." in card({}) and "| task |" not in card({}) and "Not evaluated." not in made

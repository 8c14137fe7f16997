"""Tasks of the lm-evaluation-harness from local files: its three requests, in the forms that its own tasks have."""

from pathlib import Path

import yaml

from tests.evaluation import problems

QUESTIONS = [
    ("今日はいい天気ですね。散歩に", ["行きます", "食べます", "猫"], 0),
    ("猫が好きです。犬も", ["天気です", "好きです", "sat on"], 1),
    ("The cat sat on the", ["mat", "cat sat", "今日"], 0),
    ("元気ですか？ はい、", ["猫です", "元気です", "元気"], 1),
    ("The cat", ["sat", "on the mat and sat there", "mat."], 0),
    ("白い犬", ["は元気です", "が好きです", "の天気"], 0),
]
TEXTS = [
    "今日はいい天気ですね。猫が好きです。" * 4,
    "The cat sat on the mat.\n" * 6,
    "犬も",
    "元気ですか？ はい、元気です。",
]

CHOICE = {
    "output_type": "multiple_choice",
    "doc_to_text": "{{question}}",
    "doc_to_choice": "{{choices}}",
    "doc_to_target": "label",
    "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
}
WRITTEN = {
    "output_type": "generate_until",
    "doc_to_text": "Q: {{question}}\nA:",
    "doc_to_target": "{{choices[label]}}",
    "generation_kwargs": {"until": ["\n", "。"], "max_gen_toks": 12},
    "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
}
TASKS = {
    "choice": CHOICE,
    "choice_after_examples": CHOICE | {"num_fewshot": 2, "fewshot_split": "test", "target_delimiter": " "},
    # PMI asks for the choices after nothing.
    "choice_by_information": CHOICE | {"metric_list": [{"metric": "acc_mutual_info"}, {"metric": "acc"}]},
    # Where the answer stands in the middle, the choices are contexts with the same end (Winogrande).
    "context": CHOICE
    | {"doc_to_text": "label", "doc_to_choice": "contexts", "doc_to_target": "{{'。そうですね'}}"}
    | {"metric_list": [{"metric": "acc"}]},
    "last_words": {
        "output_type": "loglikelihood",
        "doc_to_text": "{{question}}",
        "doc_to_target": "{{choices[label]}}",
        "metric_list": [
            {"metric": "perplexity", "aggregation": "perplexity", "higher_is_better": False},
            {"metric": "acc", "aggregation": "mean", "higher_is_better": True},
        ],
    },
    "whole_texts": {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{text}}",
        "metric_list": [{"metric": "word_perplexity"}, {"metric": "byte_perplexity"}, {"metric": "bits_per_byte"}],
    },
    "written": WRITTEN,
    "written_after_an_example": WRITTEN | {"num_fewshot": 1, "fewshot_split": "test"},
}


def write(folder: Path, questions=QUESTIONS, texts=TEXTS, tasks=TASKS) -> dict[str, str]:
    rows = [
        {"question": asked, "choices": choices, "label": label, "contexts": [f"{asked}{choice}" for choice in choices]}
        for asked, choices, label in questions
    ]
    problems.write(folder / "questions.jsonl", rows)
    problems.write(folder / "texts.jsonl", [{"text": text} for text in texts])
    files = {}
    for name, settings in tasks.items():
        data = folder / ("texts.jsonl" if name == "whole_texts" else "questions.jsonl")
        task = {"task": f"local_{name}", "dataset_path": "json", "test_split": "test", "metadata": {"version": 3}}
        task |= {"dataset_kwargs": {"data_files": {"test": str(data)}}} | settings
        path = folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump(task, allow_unicode=True), encoding="utf-8")
        files[name] = str(path)
    return files

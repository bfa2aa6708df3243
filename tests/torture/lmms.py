"""Does the real lmms-eval ask a checkpoint as it should? Three made tasks about digits, compared with our own answers.

    PYTHONPATH=FOLDER python tests/torture/lmms.py runs/quickstart scratch

FOLDER holds lmms-eval and what `lmms_eval.evaluator` imports. The run is the quickstart's, or one that captions its
pictures as well; nothing is fetched. Tasks, pictures and figures are left in `scratch`.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

from oneflow_dist.runtime import run_program, share_cores
from tools.digits.grammar import WORDS, load_split
from tools.shards import encode_png

NUMBER = 8
CHOICES = [f"the digit {word}" for word in WORDS]
LEAST_RIGHT = 6  # of the questions, by chance less than one
TASKS = ("made_writing", "made_choosing", "made_rounds")
UTILS = """
from PIL import Image

def look(document):
    return [Image.open(document["picture"])]

def ask(document, lmms_eval_specific_kwargs=None, previous_output=None, round_idx=None, previous_round_info=None):
    if round_idx is None:
        return document["question"]
    return look(document), f"not {previous_output[-1]}?", round_idx == 2, previous_output, None

def score(document, results):
    said = results[0] if isinstance(results[0], str) else results[0][0]
    return {"right": float(said.endswith(document["word"]))}
"""
YAML = """
task: {task}
dataset_path: json
dataset_kwargs: {{data_files: {{test: "{folder}/questions.json"}}}}
test_split: test
output_type: {kind}
doc_to_visual: !function utils.look
doc_to_text: {text}
doc_to_target: answer
"""
METRIC = "metric_list: [{{metric: {name}, aggregation: mean, higher_is_better: true}}]\n"
SCORED = "process_results: !function utils.score\n" + METRIC.format(name="right")
CHOSEN = f"doc_to_choice: {CHOICES}\n" + METRIC.format(name="acc")


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("scratch", type=Path)
    args = parser.parse_args()
    share_cores(others=1)
    os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(args.scratch.absolute() / "cache")}
    documents = make_tasks(args.scratch.absolute())
    said = evaluate(str(args.run), args.scratch.absolute())
    wrong = compare(str(args.run), documents, said)
    figures = {task: {k: v for k, v in said["results"][task].items() if "," in k} for task in TASKS}
    (args.scratch / "results.json").write_text(json.dumps(figures, indent=1, default=str))
    print(json.dumps(figures, default=str))
    if wrong:
        raise ValueError(f"{args.scratch}: the harness differs: {'; '.join(wrong)}")
    print(f"{len(TASKS)} tasks of {NUMBER} questions: as asked without the harness")


def make_tasks(folder: Path) -> list[dict[str, Any]]:
    """Pictures, questions and tasks in a folder; returns the questions."""
    folder.mkdir(parents=True, exist_ok=True)
    images, labels = load_split("heldout")
    documents = []
    for number in range(NUMBER):
        path = folder / f"{number}.png"
        path.write_bytes(encode_png(images[number]))
        label = int(labels[number])
        documents.append({"picture": str(path), "question": "", "answer": label, "word": WORDS[label]})
    (folder / "questions.json").write_text(json.dumps(documents))
    (folder / "utils.py").write_text(UTILS)
    kinds = ("generate_until", "multiple_choice", "generate_until_multi_round")
    for task, kind in zip(TASKS, kinds, strict=True):
        text = "!function utils.ask" if kind.endswith("round") else "question"
        head = YAML.format(task=task, kind=kind, folder=folder, text=text)
        (folder / f"{task}.yaml").write_text(head + (CHOSEN if kind == "multiple_choice" else SCORED))
    return documents


def evaluate(run: str, folder: Path) -> dict[str, Any]:
    """What the harness says of the tasks."""
    from lmms_eval.evaluator import simple_evaluate  # type: ignore[import-not-found]
    from lmms_eval.models import MODEL_REGISTRY_V2  # type: ignore[import-not-found]
    from lmms_eval.tasks import TaskManager  # type: ignore[import-not-found]

    from oneflow_dist.evaluation.lmms import manifest

    MODEL_REGISTRY_V2.register_manifest(manifest(), overwrite=True)  # as the entry point does where it is installed
    manager = TaskManager("ERROR", include_path=str(folder), include_defaults=False)
    options = {"batch_size": "3", "device": "cpu", "task_manager": manager, "bootstrap_iters": 0}
    found = simple_evaluate(model="oneflow", model_args=f"pretrained={run},has_turns=False", tasks=[*TASKS], **options)
    return dict(found)


def compare(run: str, documents: list[dict[str, Any]], said: dict[str, Any]) -> list[str]:
    """What the harness got that is not what the same questions get without it."""
    from PIL import Image

    from oneflow_dist.evaluation.asking import Question, load_asker

    asker = load_asker(run, has_turns=False, group=3)
    questions = [Question(each["question"], (Image.open(each["picture"]),)) for each in documents]
    samples = {task: sorted(said["samples"][task], key=lambda each: each["doc_id"]) for task in TASKS}
    written = [each["filtered_resps"][0] for each in samples["made_writing"]]
    rounds = [each["filtered_resps"][0] for each in samples["made_rounds"]]
    bounds = [[bound for bound, _ in each["filtered_resps"]] for each in samples["made_choosing"]]
    choices = [f" {choice}" for choice in CHOICES]  # the harness puts a blank before each
    own = [[asker.bound(question, choice) for choice in choices] for question in questions]
    right = [asker.choose(q, choices) == each["answer"] for q, each in zip(questions, documents, strict=True)]
    print(f"written: {written}\nrounds: {rounds}\nbounds of the first: {bounds[0]}")
    facts = {
        "answers": written == [text.partition("\n\n")[0] for text in asker.answer(questions)],
        "two rounds": all(len(each) == 2 for each in rounds),
        "first round": [each[0] for each in rounds] == [asker.answer([q], start=n)[0] for n, q in enumerate(questions)],
        "bounds": bounds == own,
        "accuracy": said["results"]["made_choosing"]["acc,none"] == sum(right) / NUMBER >= LEAST_RIGHT / NUMBER,
        "written ones": said["results"]["made_writing"]["right,none"] >= LEAST_RIGHT / NUMBER,
    }
    return [name for name, holds in facts.items() if not holds]


if __name__ == "__main__":
    run_program(main)

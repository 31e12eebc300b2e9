"""Functions that the tasks' YAML files name: which rows are asked, how a prompt is worded, how an answer is read.

`*_results` turn one answer into the JSON that the journal stores and `dpbench.tasks.aggregators` sums.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from hashlib import sha256
from typing import TYPE_CHECKING, Any, TypeVar

from dpbench.tasks import aggregators

if TYPE_CHECKING:
    from datasets import Dataset
    from PIL.Image import Image

Doc = Mapping[str, Any]
Results = Sequence[Mapping[str, Any]]
Frame = TypeVar("Frame")

SUBSET_SIZE = 10_000
SUBSET_SEED = 0
MMBENCH_LETTERS = "ABCD"
YES_NO = re.compile(r"\W*(yes|no)\b")
DENIALS = frozenset(("No", "no", "not"))
"""The words that LLaVA's reading of a yes-no answer looks for."""
POPE_METRICS = (
    "pope_accuracy", "pope_precision", "pope_recall", aggregators.F1, "pope_f1_pooled", "pope_yes_ratio",
)  # fmt: skip
LETTER_AS_ANSWER = re.compile(r"\(([A-Za-z])\)|([A-Za-z])\)|([A-Z])[.:]|([A-Za-z])$")
"""ScienceQA: "(B) ...", "B) ...", "B. ...", "B: ..." or the bare letter."""
STATED_LETTER = re.compile(r"\b[Tt]he answer is \(?([A-Z])\b(?!['-])")
"""ScienceQA: the letter in "The answer is B." or "Because ..., the answer is (B)"."""
LEADING_LETTER = re.compile(r"\(?([A-Za-z])(?![A-Za-z])")
"""SEED-Bench: a letter that does not begin a word."""


def images_only(dataset: Dataset) -> Dataset:
    """Keep SEED-Bench's image questions."""
    return dataset.filter(lambda kind: kind == "image", input_columns=["data_type"])


def with_frames(dataset: Dataset) -> Dataset:
    """Keep SEED-Bench's questions that have images: a video without frames would need a decoder."""
    from pyarrow.compute import list_value_length

    num_frames = list_value_length(dataset.data.column("image")).to_pylist()
    return dataset.select([at for at, num in enumerate(num_frames) if num])


def middle(frames: Sequence[Frame]) -> Frame:
    """Return the middle one of a video's frames, the later of two; an image is its own middle."""
    return frames[len(frames) // 2]


def middle_frame(doc: Doc) -> list[Image]:
    """Return what SEED-Bench shows of an image or a video: one frame, as LLaVA does (its paper: the middle one)."""
    return [middle(doc["image"]).convert("RGB")]


def ten_thousand(dataset: Dataset) -> Dataset:
    """Keep the 10,000 questions whose ids have the lowest hashes, in the order of the data; all if there are fewer."""
    ids = dataset["question_id"]
    chosen = sorted(range(len(ids)), key=lambda at: sha256(f"{SUBSET_SEED}/{ids[at]}".encode()).digest())
    return dataset.select(sorted(chosen[:SUBSET_SIZE]))


def has_text(value: Any) -> bool:
    """Return True if MMBench has a hint or an option there; it writes "nan" if it has none."""
    return isinstance(value, str) and value.strip() not in ("", "nan")


def mmbench_cn_text(doc: Doc, lmms_eval_specific_kwargs: Mapping[str, str]) -> str:
    """Return MMBench-CN's prompt.

    Differs from lmms-eval: no English sentence before the options, and no "nan" for a missing hint.
    """
    hint = f"{doc['hint']} " if has_text(doc["hint"]) else ""
    options = "\n".join(f"{letter}. {text}" for letter, text in _options(doc).items())
    return f"{hint}{doc['question']}\n{options}\n{lmms_eval_specific_kwargs['post_prompt']}"


def mmbench_text_of_llava(doc: Doc, lmms_eval_specific_kwargs: Mapping[str, str]) -> str:
    """Return MMBench's prompt as LLaVA words it: hint, question, options and instruction, each on a line of its own."""
    hint = [doc["hint"]] if has_text(doc["hint"]) else []
    options = [f"{letter}. {text}" for letter, text in _options(doc).items()]
    return "\n".join([*hint, doc["question"], *options, lmms_eval_specific_kwargs["post_prompt"]])


def question_text_of_llava(doc: Doc, lmms_eval_specific_kwargs: Mapping[str, Any]) -> str:
    """Return TextVQA's or VizWiz's prompt with the letters of the question as the data has them.

    Differs from lmms-eval: it makes the first letter a capital and all others small.
    """
    ocr = lmms_eval_specific_kwargs.get("ocr")
    tokens = f"\nReference OCR token: {', '.join(doc['ocr_tokens'])}" if ocr else ""
    return f"{doc['question']}{tokens}{lmms_eval_specific_kwargs['post_prompt']}"


def _options(doc: Doc) -> dict[str, str]:
    return {letter: doc[letter] for letter in MMBENCH_LETTERS if has_text(doc.get(letter))}


def mmbench_letter(answer: str, options: Mapping[str, str]) -> str | None:
    """Return the option that an answer names by letter or text, or None if it names none.

    Differs from lmms-eval's static rule: a letter inside a word does not count.
    """
    from lmms_eval.tasks._task_utils.mcq_extract import extract_mcq_answer
    from lmms_eval.tasks.mmbench.mmbench_evals import MMBench_Evaluator

    if inferred := MMBench_Evaluator().can_infer(answer, dict(options)):
        return str(inferred)
    letter = extract_mcq_answer(answer, choices=list(options))
    return letter if letter and re.search(rf"(?<![A-Za-z]){letter}(?![A-Za-z])", answer) else None


def mmbench_results(doc: Doc, results: Sequence[str]) -> dict[str, Any]:
    """Return which option an answer names, and whether it is the right one."""
    letter = mmbench_letter(results[0].strip(), _options(doc))
    result = {"index": doc["index"], "category": doc["category"], "letter": letter, "hit": letter == doc["answer"]}
    return {"gpt_eval_score": result}


def circular_percent(results: Results) -> float:
    """Return MMBench's CircularEval accuracy, 0-100: a question is right if all its rotations are."""
    return aggregators.metrics("mmbench_en", [{"gpt_eval_score": result} for result in results])["gpt_eval_score"]


def mme_results(doc: Doc, results: Sequence[str]) -> dict[str, Any]:
    """Return lmms-eval's result for its part of MME (perception or cognition), and again for the sum."""
    from lmms_eval.tasks.mme.utils import mme_process_results

    part = mme_process_results(doc, results)
    return {**part, "mme_total_score": next(iter(part.values()))}


def mme_maximum(results: Results) -> float:
    """Return the highest MME score that these samples allow: 200 per category present."""
    return 200.0 * len({result["category"] for result in results})


def pope_results(doc: Doc, results: Sequence[str]) -> dict[str, Any]:
    """Return the yes or no that an answer begins with, for each of POPE's metrics; "other" if it is neither.

    Differs from lmms-eval: it accepts only the bare word.
    """
    match = YES_NO.match(results[0].lower())
    return _pope_result(doc, match[1] if match else "other")


def pope_results_of_llava(doc: Doc, results: Sequence[str]) -> dict[str, Any]:
    """Return POPE's results as LLaVA's evaluation reads an answer: no if its first sentence denies, else yes.

    An empty answer is a yes, and so is one that mumbles; only the words "No", "no" and "not" deny.
    """
    sentence = results[0].split(".", 1)[0].replace(",", "")
    return _pope_result(doc, "no" if DENIALS & set(sentence.split(" ")) else "yes")


def _pope_result(doc: Doc, prediction: str) -> dict[str, Any]:
    truth, split = doc["answer"].lower().strip(), doc.get("category") or ""
    result = {"prediction": prediction, "ground_truth": truth, "category": split}
    return dict.fromkeys(POPE_METRICS, result)


def pope_accuracy(results: Results) -> float:
    """Return the share of correct answers."""
    return aggregators.pope(results)["pope_accuracy"]


def pope_precision(results: Results) -> float:
    """Return the share of "yes" answers that are correct."""
    return aggregators.pope(results)["pope_precision"]


def pope_recall(results: Results) -> float:
    """Return the share of "yes" questions that are answered "yes"."""
    return aggregators.pope(results)["pope_recall"]


def pope_f1_score(results: Results) -> float:
    """Return the harmonic mean of precision and recall of each split, averaged over the splits."""
    return aggregators.pope(results)[aggregators.F1]


def pope_f1_pooled(results: Results) -> float:
    """Return the harmonic mean of precision and recall of all questions together."""
    return aggregators.pope(results)["pope_f1_pooled"]


def pope_yes_ratio(results: Results) -> float:
    """Return the share of answers that are yes."""
    return aggregators.pope(results)["pope_yes_ratio"]


def scienceqa_results(doc: Doc, results: Sequence[str]) -> dict[str, float]:
    """Return 1.0 if an answer names the letter of the correct choice, else 0.0.

    Differs from lmms-eval, which counts "(B)", "B)", "B:" and "The answer is B." as wrong, and from LLaVA, which counts
    the first three as wrong and the last as right.
    """
    return {"exact_match": float(choice_letter(results[0].strip()) == chr(ord("A") + doc["answer"]))}


def choice_letter(answer: str) -> str | None:
    """Return the letter that an answer begins with, or else the one letter that it says the answer is."""
    if match := LETTER_AS_ANSWER.match(answer):
        return str(next(filter(None, match.groups()))).upper()
    stated = set(STATED_LETTER.findall(answer))
    return stated.pop() if len(stated) == 1 else None


def seedbench_results(doc: Doc, results: Sequence[str]) -> dict[str, Any]:
    """Return the letter that an answer begins with, for its kind of question and for all questions.

    Differs from lmms-eval: it takes the first character, so that "Both" is B and "(B)" is not a letter.
    """
    match = LEADING_LETTER.match(results[0].strip())
    result = {"pred": match[1] if match else "", "answer": doc["answer"]}
    return {f"seed_{doc['data_type']}": result, "seed_all": result}


def vqav2_submission(doc: Doc, results: Sequence[str]) -> dict[str, Any]:
    """Return one answer in the form that EvalAI expects."""
    return {"submission": {"question_id": doc["question_id"], "answer": results[0].strip()}}


def unscored(results: Results) -> None:
    """Return no score; only the server has the answers."""

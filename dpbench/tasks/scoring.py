"""Functions that the tasks' YAML files name: which rows are asked, how a prompt is worded, how an answer is read.

`*_results` turn one answer into the JSON that the journal stores and `dpbench.tasks.aggregators` sums.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from hashlib import sha256
from typing import TYPE_CHECKING, Any, TypeVar

from dpbench.tasks import aggregators, reading, reading_of_llava

if TYPE_CHECKING:
    from datasets import Dataset
    from PIL.Image import Image

Doc = Mapping[str, Any]
Results = Sequence[Mapping[str, Any]]
Process = Callable[[Doc, Sequence[str]], dict[str, Any]]
Frame = TypeVar("Frame")

SUBSET_SIZE = 10_000
SUBSET_SEED = 0
MMBENCH_LETTERS = "ABCD"
POPE_METRICS = (
    "pope_accuracy", "pope_precision", "pope_recall", aggregators.F1, "pope_f1_pooled", "pope_yes_ratio",
)  # fmt: skip
SEED_CHOICES = {"A": "choice_a", "B": "choice_b", "C": "choice_c", "D": "choice_d"}
"""SEED-Bench's columns of options."""


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
    options = "\n".join(f"{letter}. {text}" for letter, text in mmbench_options(doc).items())
    return f"{hint}{doc['question']}\n{options}\n{lmms_eval_specific_kwargs['post_prompt']}"


def mmbench_text_of_llava(doc: Doc, lmms_eval_specific_kwargs: Mapping[str, str]) -> str:
    """Return MMBench's prompt as LLaVA words it: hint, question, options and instruction, each on a line of its own."""
    hint = [doc["hint"]] if has_text(doc["hint"]) else []
    options = [f"{letter}. {text}" for letter, text in mmbench_options(doc).items()]
    return "\n".join([*hint, doc["question"], *options, lmms_eval_specific_kwargs["post_prompt"]])


def question_text_of_llava(doc: Doc, lmms_eval_specific_kwargs: Mapping[str, Any]) -> str:
    """Return TextVQA's or VizWiz's prompt with the letters of the question as the data has them.

    Differs from lmms-eval: it makes the first letter a capital and all others small.
    """
    ocr = lmms_eval_specific_kwargs.get("ocr")
    tokens = f"\nReference OCR token: {', '.join(doc['ocr_tokens'])}" if ocr else ""
    return f"{doc['question']}{tokens}{lmms_eval_specific_kwargs['post_prompt']}"


def mmbench_options(doc: Doc) -> dict[str, str]:
    """Return MMBench's options that are there, by letter."""
    return {letter: doc[letter] for letter in MMBENCH_LETTERS if has_text(doc.get(letter))}


def mmbench_results(doc: Doc, results: Sequence[str]) -> dict[str, Any]:
    """Return which option an answer names, and whether it is the right one.

    Differs from lmms-eval's static rule: it takes letters inside words and options that are not there.
    """
    letter = reading.letter(results[0], mmbench_options(doc))
    result = {"index": doc["index"], "category": doc["category"], "letter": letter}
    result["hit"] = letter == doc["answer"].strip().upper()
    return {"gpt_eval_score": result}


def circular_percent(results: Results) -> float:
    """Return MMBench's CircularEval accuracy, 0-100: a question is right if all its rotations are."""
    return aggregators.metrics("mmbench_en", [{"gpt_eval_score": result} for result in results])["gpt_eval_score"]


def mme_results(doc: Doc, results: Sequence[str]) -> dict[str, Any]:
    """Return whether an answer says what is true, for its part of MME (perception or cognition) and for the sum.

    Differs from lmms-eval, which reads as MME's own tool does.
    """
    return mme_results_of_llava(doc, [reading.yes_or_no(results[0]) or "other"])


def mme_results_of_llava(doc: Doc, results: Sequence[str]) -> dict[str, Any]:
    """Return MME's results as its own tool, which LLaVA uses, and lmms-eval read an answer: by four characters."""
    from lmms_eval.tasks.mme.utils import mme_process_results

    part = mme_process_results(doc, results)
    return {**part, "mme_total_score": next(iter(part.values()))}


def mme_maximum(results: Results) -> float:
    """Return the highest MME score that these samples allow: 200 per category present."""
    return 200.0 * len({result["category"] for result in results})


def pope_results(doc: Doc, results: Sequence[str]) -> dict[str, Any]:
    """Return the yes or no that an answer says, for each of POPE's metrics; "other" if it says neither.

    Differs from lmms-eval: it accepts only the bare word.
    """
    return _pope_result(doc, reading.yes_or_no(results[0]) or "other")


def pope_results_of_llava(doc: Doc, results: Sequence[str]) -> dict[str, Any]:
    """Return POPE's results as LLaVA's evaluation reads an answer: no if its first sentence denies, else yes."""
    return _pope_result(doc, reading_of_llava.yes_or_no(results[0]))


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
    """Return 1.0 if an answer names the correct choice, else 0.0.

    Differs from lmms-eval, which takes only "B" and "B. ".
    """
    choices = {_capital(at): choice for at, choice in enumerate(doc["choices"] or ())}
    return _scienceqa_result(doc, reading.letter(results[0], choices))


def scienceqa_results_of_llava(doc: Doc, results: Sequence[str]) -> dict[str, float]:
    """Return ScienceQA's result as LLaVA's evaluation reads an answer."""
    return _scienceqa_result(doc, reading_of_llava.scienceqa_letter(results[0].strip()))


def _scienceqa_result(doc: Doc, letter: str | None) -> dict[str, float]:
    return {"exact_match": float(letter == _capital(doc["answer"]))}


def _capital(at: int) -> str:
    return chr(ord("A") + at)


def seedbench_results(doc: Doc, results: Sequence[str]) -> dict[str, Any]:
    """Return the letter that an answer names, for its kind of question and for all questions.

    Differs from lmms-eval: it takes the first character, so that "Both" is B and "(B)" is not a letter.
    """
    choices = {letter: doc.get(column) for letter, column in SEED_CHOICES.items()}
    return _seedbench_result(doc, reading.letter(results[0], choices))


def seedbench_results_of_llava(doc: Doc, results: Sequence[str]) -> dict[str, Any]:
    """Return SEED-Bench's results as LLaVA's evaluation reads an answer."""
    return _seedbench_result(doc, reading_of_llava.seedbench_letter(results[0].strip()))


def _seedbench_result(doc: Doc, letter: str | None) -> dict[str, Any]:
    result = {"pred": letter or "", "answer": doc["answer"]}
    return {f"seed_{doc['data_type']}": result, "seed_all": result}


def vqav2_submission(doc: Doc, results: Sequence[str]) -> dict[str, Any]:
    """Return one answer in the form that EvalAI expects."""
    return {"submission": {"question_id": doc["question_id"], "answer": results[0].strip()}}


def unscored(results: Results) -> None:
    """Return no score; only the server has the answers."""


OF_LLAVA: Mapping[str, Process] = {
    "pope": pope_results_of_llava,
    "mme": mme_results_of_llava,
    "scienceqa": scienceqa_results_of_llava,
    "seedbench": seedbench_results_of_llava,
}
"""By benchmark, what reads its answers under `reading: llava`; the others are read as ever."""

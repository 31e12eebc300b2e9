"""lmms-eval's own ten tasks, as reference: prompt, reading of an answer, aggregation."""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import lmms_eval.tasks
from lmms_eval.api.metrics import exact_match_hf_evaluate
from lmms_eval.tasks.mmbench.mmbench_evals import MMBench_Evaluator
from lmms_eval.utils import load_yaml_config

YAMLS = {
    "gqa": "gqa/gqa.yaml",
    "mmbench_en": "mmbench/mmbench_en_dev_static.yaml",
    "mmbench_cn": "mmbench/mmbench_cn_dev.yaml",
    "mme": "mme/mme.yaml",
    "pope": "pope/pope.yaml",
    "scienceqa": "scienceqa/scienceqa_img.yaml",
    "vqav2": "vqav2/vqav2_val.yaml",
    "textvqa": "textvqa/textvqa_val.yaml",
    "seedbench": "seedbench/seedbench.yaml",
    "vizwiz": "vizwiz_vqa/vizwiz_vqa_val.yaml",
}


def config(name: str) -> dict[str, Any]:
    return dict(load_yaml_config(str(Path(lmms_eval.tasks.__file__).parent / YAMLS[name])))


def prompt(name: str, doc: Mapping[str, Any]) -> str:
    """Return the text upstream asks after the image."""
    loaded = config(name)
    kwargs = loaded.get("lmms_eval_specific_kwargs", {}).get("default")
    return str(loaded["doc_to_text"](doc, kwargs) if kwargs else loaded["doc_to_text"](doc))


def read(name: str, doc: Mapping[str, Any], answer: str) -> dict[str, Any]:
    """Return what upstream's `process_results` makes of one answer; GQA has none, its metric is read off."""
    process = config(name).get("process_results")
    if process is None:
        told = exact_match_hf_evaluate([answer.strip()], [doc["answer"]], ignore_case=True, ignore_punctuation=True)
        return dict(told)
    return dict(process(deepcopy(dict(doc)), [answer.strip()]))


def percent(name: str, read_: Sequence[Mapping[str, Any]], metric: str) -> float:
    """Return upstream's score, 0-100, through its own aggregation; MMBench by its static rule, MME as points."""
    values = [each[metric] for each in read_ if metric in each]
    if name.startswith("mmbench"):
        return 100 * float(MMBench_Evaluator().eval_result(values, eval_method="static")[0])
    (how,) = [each["aggregation"] for each in config(name)["metric_list"] if each["metric"] == metric]
    if how == "mean":
        return 100 * sum(values) / len(values)
    return float(how(values)) * (1 if name == "mme" else 100)

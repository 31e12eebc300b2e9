"""Answering a batch: how requests are split into batches, and where an answer ends."""

from dataclasses import replace

import pytest
from places import TOY_DATA

from dpbench.engine.answers import split_into_batches, truncate_at_stops
from dpbench.tasks import lmms_eval_adapter


@pytest.mark.parametrize(
    ("text", "stops", "answer"),
    [("yes ASSISTANT: no", ("ASSISTANT:",), "yes"), (" a\n\nb", ("\n\n",), "a"), ("a", (), "a")],
)
def test_answers_end_at_the_tasks_stop_strings(text: str, stops: tuple[str, ...], answer: str) -> None:
    assert truncate_at_stops(text, stops) == answer


def test_a_batch_holds_questions_about_one_image_side_by_side() -> None:
    built = lmms_eval_adapter.build("mmbench_en", TOY_DATA, limit=12)
    limits = [1, 3, 16]
    requests = [replace(request, max_new_tokens=limits[n % 3]) for n, request in enumerate(built.requests)]
    requests[1] = replace(requests[1], text=f"Look closely. {requests[1].text}")
    split = list(split_into_batches(built, requests, 4))
    assert sorted(request.doc_id for batch in split for request in batch) == [request.doc_id for request in requests]
    for batch in split:
        assert len({request.max_new_tokens for request in batch}) == 1
        groups = [built.image_group(request) for request in batch]
        assert groups == sorted(groups, key=groups.index)

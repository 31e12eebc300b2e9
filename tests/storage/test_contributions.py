"""The packed file holds what the journals say, and the units of each benchmark's score."""

from pathlib import Path

import numpy as np
import pytest
from made_records import make_answer, make_record, write_run

from dpbench.errors import RecordError
from dpbench.storage import contributions, record
from dpbench.storage.journal import Answer, Journal
from dpbench.tasks import aggregators

SAID = {"1": "yes", "0": "no"}


def pope(rights: str, images: str) -> list[Answer]:
    """Return answers to yes-no questions, one per letter: 1 right, 0 wrong, each on the image of its letter."""
    return [
        make_answer("pope", at, image, {"pope_f1_score": {"prediction": SAID[right], "ground_truth": "yes"}})
        for at, (right, image) in enumerate(zip(rights, images, strict=True))
    ]


def vqa(*values: float, images: str = "") -> list[Answer]:
    """Return answers with their accuracy, all on one image unless each has a letter for its own."""
    names = images or "a" * len(values)
    return [make_answer("vqav2", at, names[at], {"exact_match": value}) for at, value in enumerate(values)]


def circles(rights: str) -> list[Answer]:
    """Return answers to one MMBench question a pair of letters: the question and its rotation."""
    return [
        make_answer(
            "mmbench_en",
            at,
            f"image {at // 2}",
            {"gpt_eval_score": {"index": at // 2 + 1_000_000 * (at % 2), "hit": int(right)}},
        )
        for at, right in enumerate(rights)
    ]


def detections(said: str, truths: str, splits: str) -> list[Answer]:
    """Return POPE's answers, one per letter: y, n, or another for neither; two of each image."""
    words = {"y": "yes", "n": "no"}
    return [
        make_answer(
            "pope",
            at,
            f"image {at // 2}",
            {
                "pope_f1_score": {
                    "prediction": words.get(each, "other"),
                    "ground_truth": words[truth],
                    "category": split,
                }
            },
        )
        for at, (each, truth, split) in enumerate(zip(said, truths, splits, strict=True))
    ]


def test_samples_of_one_image_add_up() -> None:
    sums = contributions.from_answers("vqav2", vqa(1.0, 1.0, 0.0, 1.0, images="aaab")).sums()
    assert sums.numerator_CT.tolist() == [[2.0], [1.0]]
    assert sums.denominator_CT.tolist() == [[3.0], [1.0]]
    assert contributions.from_answers("pope", pope("1101", "abab")).layout.cluster_U.tolist() == [0, 1, 0, 1]


def test_the_score_is_the_aggregators() -> None:
    answers = circles("11100111")
    ours = aggregators.score(contributions.from_answers("mmbench_en", answers).sums())
    wanted = aggregators.sums("mmbench_en", [a.scores for a in answers], [a.image_group for a in answers])
    assert ours[0] == aggregators.score(wanted)[0] == 50.0


def test_a_unit_is_right_as_a_whole() -> None:
    assert contributions.from_answers("mmbench_en", circles("1110")).right_U().tolist() == [True, False]
    found = {"category": "count", "question_id": "1.jpg"}
    pair = [make_answer("mme", at, "a", {"mme_total_score": {**found, "score": float(at)}}) for at in range(2)]
    assert contributions.from_answers("mme", pair).right_U().tolist() == [False]


def test_consensus_counts_from_one_half() -> None:
    assert contributions.from_answers("vqav2", vqa(0.3, 0.6, 1.0)).right_U().tolist() == [False, True, True]


def test_an_f1_divides_by_what_the_cell_answered_and_is_paired_all_the_same() -> None:
    """Per image: twice the hits, over the yes answers plus the yes questions; the splits are two columns."""
    truths, splits = "ynynyn", "aabbab"
    first = contributions.from_answers("pope", detections("yynnyn", truths, splits))
    second = contributions.from_answers("pope", detections("nnyyny", truths, splits))
    assert first.layout.id == second.layout.id
    assert first.sums().numerator_CT.tolist() == [[2, 0], [0, 0], [2, 0]]
    assert first.sums().denominator_CT.tolist() == [[3, 0], [0, 1], [2, 0]]
    assert second.sums().denominator_CT.tolist() == [[1, 0], [0, 3], [1, 1]]
    assert aggregators.score(first.sums())[0] == pytest.approx(100 * (4 / 5 + 0) / 2)
    assert aggregators.score(second.sums())[0] == pytest.approx(100 * (0 + 2 / 4) / 2)


def test_an_answer_of_an_f1_is_right_if_it_is_true_even_where_it_adds_nothing() -> None:
    cell = contributions.from_answers("pope", detections("yynn?", "ynynn", "aaaaa"))
    assert cell.right_U().tolist() == [True, False, False, True, False]
    assert cell.numerator_UT[:, 0].tolist() == [2, 0, 0, 0, 0]


def test_the_packed_file_keeps_the_denominators_of_each_cell(tmp_path: Path) -> None:
    records = [make_record("grid", keep, "pope", 50.0) for keep in (16, 32)]
    said = {records[0].cell_id: "yynnyn", records[1].cell_id: "nnyyn?"}
    folder = write_run(tmp_path, records, {name: detections(each, "ynynyn", "aabbab") for name, each in said.items()})
    unpacked = contributions.load(folder, records)
    contributions.pack(folder)
    packed = contributions.load(folder, records, journals=False)
    for name, cell in packed.items():
        assert aggregators.score(cell.sums())[0] == aggregators.score(unpacked[name].sums())[0]
        assert (cell.right_U() == unpacked[name].right_U()).all()
    assert len({cell.layout.id for cell in packed.values()}) == 1


def test_the_order_of_a_journal_does_not_matter() -> None:
    answers = pope("1100", "abca")
    first, second = (contributions.from_answers("pope", each) for each in (answers, answers[::-1]))
    assert first.layout.id == second.layout.id
    assert (first.numerator_UT == second.numerator_UT).all()


def test_chosen_units_alone_can_be_added() -> None:
    chosen = np.array([False, True, True, False])
    assert contributions.from_answers("pope", pope("1101", "aabb")).sums(chosen).numerator_CT.tolist() == [[2.0], [0.0]]


def test_what_is_packed_is_what_the_journals_say(tmp_path: Path) -> None:
    records = [make_record("grid", 16, "pope", 50.0), make_record("grid", 16, "mmbench_en", 50.0)]
    journals = {records[0].cell_id: pope("1100", "aabb"), records[1].cell_id: circles("1110")}
    folder = write_run(tmp_path, records, journals)
    unpacked = contributions.load(folder, records)
    packed = contributions.pack(folder)
    for path in (folder / "samples").iterdir():
        path.unlink()
    again = contributions.load(folder, records)
    assert packed.name == "contributions.npz"
    assert set(again) == set(journals)
    for name, cell in again.items():
        assert cell.layout.id == unpacked[name].layout.id
        assert (cell.numerator_UT == unpacked[name].numerator_UT).all()


def test_packing_again_reads_new_journals_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = make_record("grid", 16, "pope", 50.0), make_record("grid", 32, "pope", 75.0)
    folder = write_run(tmp_path, [first], {first.cell_id: pope("1100", "aabb")})
    contributions.pack(folder)
    write_run(tmp_path, [second], {second.cell_id: pope("1110", "aabb")})
    (folder / "samples" / f"{first.cell_id}.jsonl").write_text("no journal any more\n")
    contributions.pack(folder)
    assert set(contributions.load(folder, [first, second], journals=False)) == {first.cell_id, second.cell_id}


def test_a_damaged_file_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / contributions.NAME).write_bytes(b"PK\x03\x04 no zip file")
    with pytest.raises(RecordError, match=r"contributions.npz cannot be read .*; delete it"):
        contributions.load(tmp_path, [make_record("grid", 16, "pope", 50.0)])


def test_a_cut_off_file_is_one_sentence(tmp_path: Path) -> None:
    each = make_record("grid", 16, "pope", 50.0)
    path = contributions.pack(write_run(tmp_path, [each], {each.cell_id: pope("1100", "aabb")}))
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(RecordError, match="cannot be read"):
        contributions.load(tmp_path, [each])


def test_scores_of_another_version_are_one_sentence(tmp_path: Path) -> None:
    each = make_record("grid", 16, "mmbench_en", 50.0)
    folder = write_run(
        tmp_path, [each], {each.cell_id: [make_answer("mmbench_en", 0, "a", {"gpt_eval_score": {"index": 1}})]}
    )
    with pytest.raises(RecordError, match="mmbench_en holds scores of another dpbench"):
        contributions.load(folder, [each])


def test_a_run_without_journals_packs_nothing(tmp_path: Path) -> None:
    write_run(tmp_path, [make_record("grid", 16, "pope", 50.0)])
    assert not contributions.pack(tmp_path).exists()


def test_records_and_journals_are_left_as_they_are(tmp_path: Path) -> None:
    each = make_record("grid", 16, "pope", 50.0)
    folder = write_run(tmp_path, [each], {each.cell_id: pope("1100", "aabb")})
    contributions.pack(folder)
    assert record.read(folder / "records.jsonl", record.Record) == [each]
    assert len(Journal(folder / "samples" / f"{each.cell_id}.jsonl").answers) == 4

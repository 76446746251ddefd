"""`python -m ensembles.build`: anybody's posteriors, and what is wrong with them."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ensembles import EnsembleError
from ensembles.bank.posterior_bank import BankEntry, Experts, PosteriorBank
from ensembles.bank.prediction_tables import FLOOR, join, read_predictions
from ensembles.bank.training_variant import SEARCH, Variant
from ensembles.build import fit_on_training, main
from ensembles.metrics import log_softmax

Write = Callable[..., Path]
Row = dict[str, Any]


@pytest.fixture()
def experts(make_experts: Any) -> Experts:
    return make_experts(skills=(1.5, 1.0), modalities=("one", "two"))


@pytest.fixture()
def write(tmp_path: Path) -> Write:
    """Writes one expert as CSV; `edit` may change the rows."""

    def write_csv(
        experts: Experts,
        expert: int,
        name: str,
        *,
        order: Sequence[int] | None = None,
        columns: Sequence[str] | None = None,
        logits: bool = False,
        part: str | None = None,
        edit: Callable[[list[Row]], Any] | None = None,
    ) -> Path:
        table = experts.table
        values = experts.log_posteriors[expert]
        values = 3.0 + values if logits else np.exp(values)
        rows: list[Row] = [
            {
                "clip": table.clips[i],
                "speaker": table.speakers[i],
                "fold": f"fold {table.folds[i]}",
                "label": table.classes[table.labels[i]],
                **({"part": part} if part else {}),
                **dict(zip(table.classes, values[i].tolist(), strict=True)),
            }
            for i in (order if order is not None else range(len(table.clips)))
        ]
        header = list(columns or rows[0])
        if edit:
            edit(rows)
        path = tmp_path / f"{name}.csv"
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, header)
            writer.writeheader()
            writer.writerows(rows)
        return path

    return write_csv


def joined(*paths: Path, kind: str = "probabilities") -> Experts:
    return join([read_predictions(path, kind) for path in paths])


def assert_same(got: Experts, expected: Experts) -> None:
    assert got.table.fingerprint == expected.table.fingerprint
    np.testing.assert_allclose(got.log_posteriors, expected.log_posteriors, atol=1e-9)


def test_files_in_different_orders_join_by_clip(experts: Experts, write: Write) -> None:
    order = np.random.default_rng(0).permutation(len(experts.table.clips)).tolist()
    got = joined(write(experts, 0, "one"), write(experts, 1, "two", order=order))
    assert got.names == got.modalities == ("one", "two")
    assert_same(got, experts)


def test_class_columns_in_another_order_join_by_name(experts: Experts, write: Write) -> None:
    columns = ["c", "label", "a", "fold", "b", "speaker", "clip"]
    got = joined(write(experts, 0, "one"), write(experts, 1, "two", columns=columns))
    assert_same(got, experts)


def test_logits_are_normalised(experts: Experts, write: Write) -> None:
    paths = [write(experts, m, name, logits=True) for m, name in enumerate(("one", "two"))]
    assert_same(joined(*paths, kind="logits"), experts)


def test_a_byte_order_mark_is_no_part_of_the_header(experts: Experts, write: Write) -> None:
    path = write(experts, 0, "one")
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert "clip0000" in read_predictions(path).held_out


def test_the_seed_column_is_no_class(experts: Experts, write: Write) -> None:
    def add_seed(rows: list[Row]) -> None:
        for row in rows:
            row["seed"] = 3

    columns = ["clip", "speaker", "fold", "label", "seed", "a", "b", "c"]
    assert read_predictions(write(experts, 0, "one", columns=columns, edit=add_seed)).classes == (
        "a",
        "b",
        "c",
    )


def test_probabilities_of_zero_and_one_are_taken(experts: Experts, write: Write) -> None:
    def harden(rows: list[Row]) -> None:
        for row in rows:
            row.update(a=1.0, b=0.0, c=0.0)

    got = joined(write(experts, 0, "one", edit=harden))
    assert np.isfinite(got.log_posteriors).all()
    np.testing.assert_allclose(got.log_posteriors[0, :, 1], np.log(FLOOR), atol=1e-5)


def put(row: int, **values: Any) -> Callable[[list[Row]], None]:
    """An edit of one row; the header is line 1 of the file, so row 0 is line 2."""
    return lambda rows: rows[row].update(values)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (
            put(3, a=0.5, b=0.5, c=0.5),
            r"1 bad rows:\n  row 5: clip 'clip0003': probabilities must be 0 or more and sum to 1, "
            r"got 1\.500 \(or: --kind logits\)",
        ),
        (put(0, a=-0.5, b=1.0, c=0.5), "row 2: clip 'clip0000': probabilities must be 0 or more"),
        (put(1, a="nan"), "row 3: clip 'clip0001' has values that are not finite"),
        (put(1, a="inf"), "row 3: clip 'clip0001' has values that are not finite"),
        (put(1, a="x"), "row 3: clip 'clip0001' has values that are not numbers"),
        (put(2, label="joy"), "row 4: label 'joy' is not a class column"),
        (put(4, clip="clip0003"), "row 6: clip 'clip0003' (is held out twice|has another)"),
        (lambda rows: rows.append(dict(rows[0])), "row 74: clip 'clip0000' is held out twice"),
    ],
)
def test_bad_rows_are_named(
    edit: Callable[[list[Row]], Any], message: str, experts: Experts, write: Write
) -> None:
    with pytest.raises(EnsembleError, match=message):
        read_predictions(write(experts, 0, "one", edit=edit))


def test_every_bad_row_is_named_at_once(experts: Experts, write: Write) -> None:
    def spoil(rows: list[Row]) -> None:
        put(0, label="joy")(rows)
        put(9, a="x")(rows)

    with pytest.raises(EnsembleError, match=r"(?s)2 bad rows.*row 2: label.*row 11: clip"):
        read_predictions(write(experts, 0, "one", edit=spoil))


def test_a_row_of_another_length_is_named(experts: Experts, write: Write) -> None:
    path = write(experts, 0, "one")
    for surplus in (",0.1", ""):
        lines = path.read_text().splitlines()
        lines[2] = lines[2] + surplus if surplus else lines[2].rpartition(",")[0]
        broken = path.with_name("broken.csv")
        broken.write_text("\n".join(lines))
        with pytest.raises(EnsembleError, match="row 3: the number of fields differs"):
            read_predictions(broken)


def test_an_unknown_part_is_named(experts: Experts, write: Write) -> None:
    with pytest.raises(EnsembleError, match="row 2: part is 'dev', not train or test"):
        read_predictions(write(experts, 0, "one", part="dev"))


def test_a_file_of_training_rows_alone_is_refused(experts: Experts, write: Write) -> None:
    with pytest.raises(EnsembleError, match="has no row of held-out clips"):
        read_predictions(write(experts, 0, "one", part="train"))


@pytest.mark.parametrize("content", ["", "clip,speaker,fold,a,b\n", "clip,speaker,fold,label,a\n"])
def test_missing_columns_are_named(content: str, tmp_path: Path) -> None:
    path = tmp_path / "one.csv"
    path.write_text(content)
    with pytest.raises(EnsembleError, match="needs the columns clip,speaker,fold,label and one a"):
        read_predictions(path)


def test_clips_missing_from_one_file_are_named(experts: Experts, write: Write) -> None:
    with pytest.raises(
        EnsembleError, match=r"2 clips are not in both 'one' and 'two': clip0070, clip0071\."
    ):
        joined(write(experts, 0, "one"), write(experts, 1, "two", order=range(70)))


@pytest.mark.parametrize(
    "change",
    [{"speaker": "somebody"}, {"label": "b"}, {"fold": "fold 3"}],
    ids=lambda c: next(iter(c)),
)
def test_files_that_disagree_about_a_clip_are_refused(
    change: Row, experts: Experts, write: Write
) -> None:
    with pytest.raises(EnsembleError, match="differ in speaker, label or fold of clip 'clip0000'"):
        joined(write(experts, 0, "one"), write(experts, 1, "two", edit=put(0, **change)))


def test_files_of_different_classes_are_refused(experts: Experts, write: Write) -> None:
    path = write(experts, 1, "two")
    path.write_text(path.read_text().replace(",a,b,c", ",a,b,d").replace(",c,0", ",d,0"))
    with pytest.raises(
        EnsembleError, match=r"'two' has the classes \['a', 'b', 'd'\], 'one' \['a'"
    ):
        joined(write(experts, 0, "one"), path)


def test_two_files_of_one_name_are_refused(experts: Experts, write: Write) -> None:
    path = write(experts, 0, "one")
    with pytest.raises(EnsembleError, match="Two files have the same name"):
        joined(path, path)


def test_a_speaker_in_two_folds_is_refused_as_a_leak(experts: Experts, write: Write) -> None:
    with pytest.raises(EnsembleError, match="Leak: speaker 'speaker00' is held out in several"):
        joined(write(experts, 0, "one", edit=put(0, fold="fold 1")))


def test_one_fold_is_refused(experts: Experts, write: Write) -> None:
    def merge(rows: list[Row]) -> None:
        for row in rows:
            row["fold"] = "only"

    with pytest.raises(EnsembleError, match="have one fold; cross-fitting a fusion needs two"):
        joined(write(experts, 0, "one", edit=merge))


def add_training(rows: list[Row]) -> None:
    """Every fold's network also predicts the clips of all other folds, and is sure of them."""
    for row in rows:
        row["part"] = "test"
    for row in list(rows):
        for fold in sorted({r["fold"] for r in rows} - {row["fold"]}):
            sure = {name: 0.9 if name == row["label"] else 0.05 for name in "abc"}
            rows.append({**row, "part": "train", "fold": fold, **sure})


WITH_PART = ["clip", "speaker", "fold", "label", "part", "a", "b", "c"]


def test_a_fusion_fitted_on_training_posteriors_is_called_in_sample(
    experts: Experts, write: Write
) -> None:
    files = [
        read_predictions(write(experts, m, name, columns=WITH_PART, edit=add_training))
        for m, name in enumerate(("one", "two"))
    ]
    together = join(files)
    assert_same(together, experts)
    rows = fit_on_training(files, together, "accuracy")
    assert len(rows) == 12
    assert all(row.name.endswith("[in-sample fit]") for row in rows)
    assert all(row.search_score is None for row in rows)
    average = next(row for row in rows if row.name.startswith("all: average"))
    np.testing.assert_allclose(
        np.exp(average.log_posteriors), np.exp(experts.log_posteriors).mean(axis=0), atol=1e-9
    )


def test_fitting_on_training_posteriors_needs_them(experts: Experts, write: Write) -> None:
    files = [read_predictions(write(experts, m, name)) for m, name in enumerate(("one", "two"))]
    with pytest.raises(
        EnsembleError, match=r"'one' has no training posteriors \(part = train\) of fold fold 0\."
    ):
        fit_on_training(files, join(files), "accuracy")


def test_a_training_clip_that_one_file_lacks_is_named(experts: Experts, write: Write) -> None:
    def all_but_the_last(rows: list[Row]) -> None:
        add_training(rows)
        rows.pop()

    files = [
        read_predictions(write(experts, 0, "one", columns=WITH_PART, edit=add_training)),
        read_predictions(write(experts, 1, "two", columns=WITH_PART, edit=all_but_the_last)),
    ]
    with pytest.raises(EnsembleError, match=r"'two' has no training .* for clip 'clip0071'"):
        fit_on_training(files, join(files), "accuracy")


def test_training_posteriors_of_held_out_speakers_are_refused_as_a_leak(
    experts: Experts, write: Write
) -> None:
    def leak(rows: list[Row]) -> None:
        add_training(rows)
        rows.append({**rows[0], "part": "train"})

    files = [
        read_predictions(write(experts, m, name, columns=WITH_PART, edit=leak))
        for m, name in enumerate(("one", "two"))
    ]
    with pytest.raises(EnsembleError, match="Leak: fold fold 0 holds out speaker 'speaker00'"):
        fit_on_training(files, join(files), "accuracy")


def test_json_has_the_honest_and_the_search_score(
    experts: Experts, write: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [str(write(experts, m, name)) for m, name in enumerate(("one", "two"))]
    assert main(["--posteriors", *paths, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert rows[0]["name"] == "fused"
    assert {"best one", "best two", "all: average", "greedy: product"} < {r["name"] for r in rows}
    for row in rows:
        assert 0 <= row["honest_score"] <= 1
        assert 0 <= row["search_score"] <= 1
    honest = [row["honest_score"] for row in rows[1:]]
    assert honest == sorted(honest, reverse=True)
    best = next(row for row in rows if row["name"] == "best one")
    expected = (experts.log_posteriors[0].argmax(axis=1) == experts.table.labels).mean()
    assert best["honest_score"] == pytest.approx(expected)  # folds of equal size


def test_log_loss_lists_the_least_first(
    experts: Experts, write: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [str(write(experts, m, name)) for m, name in enumerate(("one", "two"))]
    assert main(["--posteriors", *paths, "--json", "--metric", "log_loss"]) == 0
    honest = [row["honest_score"] for row in json.loads(capsys.readouterr().out)[1:]]
    assert honest == sorted(honest)


def test_the_table_shows_both_numbers_and_marks_in_sample_fits(
    experts: Experts,
    write: Write,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    paths = [
        str(write(experts, m, name, columns=WITH_PART, edit=add_training))
        for m, name in enumerate(("one", "two"))
    ]
    assert main(["--posteriors", *paths, "--fit-on", "train-posteriors"]) == 0
    out = capsys.readouterr().out
    assert "accuracy, 72 clips, 12 speakers, 4 folds" in out
    assert "optimistic" in out
    above, below = out.split("in-sample:", maxsplit=1)
    assert "fused" in above
    assert "honest" in above
    assert "search" in above
    assert below.count("[in-sample fit]") == 12


@pytest.mark.parametrize("arguments", [["--metric", "f1"], []], ids=["metric", "leak"])
def test_a_mistake_ends_in_one_line_and_exit_code_2(
    arguments: list[str], experts: Experts, write: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(experts, 0, "one", edit=None if arguments else put(0, fold="fold 1"))
    assert main(["--posteriors", str(path), *arguments]) == 2
    got = capsys.readouterr()
    assert got.out == ""
    assert got.err.startswith("error: ")
    assert got.err.count("\n") == 1


@pytest.mark.parametrize("content", [None, b"\xff\xfe\x00", b"clip,speaker,fold,label,a,b\n"])
def test_unreadable_files_end_in_exit_code_2(
    content: bytes | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "one.csv"
    if content is not None:
        path.write_bytes(content)
    assert main(["--posteriors", str(path)]) == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_a_folder_without_a_bank_ends_in_exit_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(tmp_path)]) == 2
    assert capsys.readouterr().err == f"error: No posterior bank in '{tmp_path / 'bank'}'.\n"


@pytest.mark.parametrize(
    "arguments",
    [[], ["run", "--posteriors", "a.csv"], ["run", "--fit-on", "train-posteriors"]],
    ids=["neither", "both", "training posteriors of a run"],
)
def test_wrong_arguments_are_refused(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as error:
        main(arguments)
    assert error.value.code == 2
    assert "error: " in capsys.readouterr().err


@pytest.fixture()
def run(tmp_path: Path, make_experts: Any) -> Path:
    """A run's folder whose bank holds two finished experts, a stopped one and a retrained one."""
    experts = make_experts(skills=(1.0, 1.0, 9.0, 9.0))
    bank = PosteriorBank.create(tmp_path / "run" / "bank", experts.table)
    for name, variant, percent, values in zip(
        ("audio-0001", "video-0002", "audio-0003", "audio-0001"),
        (SEARCH, SEARCH, SEARCH, Variant("fresh seed", 1)),
        (100, 100, 50, 100),
        experts.log_posteriors,
        strict=True,
    ):
        bank.write(
            BankEntry(
                trial=name,
                variant=variant,
                modality=name.split("-")[0],
                architecture="functionals",
                percent=percent,
                epoch=1,
                seed=0,
                logits=values.astype(np.float32),
            )
        )
    return tmp_path / "run"


def test_a_run_is_fused_from_its_finished_experts(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(run), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    used = {name for row in rows for name in row["experts"]}
    assert used == {"audio-0001", "video-0002"}
    assert "a+v: average" in {row["name"] for row in rows}


def test_a_run_of_another_format_is_refused_in_one_line(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (run / "summary.json").write_text(json.dumps({"format_version": 1, "commit": "abc+changes"}))
    assert main([str(run)]) == 2
    assert capsys.readouterr().err == (
        f"error: The run in '{run}' is of format version 1; this program reads version 2. "
        "Use commit abc, which made it, or search again.\n"
    )


def test_a_damaged_entry_is_left_out_with_a_warning(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (run / "bank" / "video-0002@100.npz").write_bytes(b"half")
    assert main([str(run), "--json"]) == 0
    got = capsys.readouterr()
    assert "warning: bank entry left out: video-0002@100.npz" in got.err
    assert [row["name"] for row in json.loads(got.out)] == ["fused", "best audio"]


def test_a_run_without_a_finished_expert_ends_in_exit_code_2(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in (run / "bank").glob("*@100.npz"):
        path.unlink()
    assert main([str(run)]) == 2
    assert capsys.readouterr().err == "error: There is no finished expert to fuse.\n"


@pytest.mark.parametrize("certain", [True, False])
def test_a_constant_expert_is_fine(
    certain: bool, experts: Experts, write: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    def always_the_same(rows: list[Row]) -> None:
        for row in rows:
            row.update(
                {"a": 1.0, "b": 0.0, "c": 0.0} if certain else {"a": 0.5, "b": 0.3, "c": 0.2}
            )

    paths = [write(experts, 0, "one"), write(experts, 1, "majority", edit=always_the_same)]
    assert main(["--posteriors", *map(str, paths), "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows["best majority"]["honest_score"] == pytest.approx(1 / 3)
    assert rows["fused"]["honest_score"] > 0.5
    for row in rows.values():
        assert np.isfinite([row["honest_score"], row["search_score"], *row["interval_95"]]).all()


def test_probabilities_are_kept_as_they_are_apart_from_rounding(
    experts: Experts, write: Write
) -> None:
    def rounded(rows: list[Row]) -> None:
        for row in rows:
            row.update({name: round(row[name], 2) for name in "abc"})

    got = joined(write(experts, 0, "one", edit=rounded))
    np.testing.assert_allclose(
        np.exp(got.log_posteriors[0]), np.exp(experts.log_posteriors[0]), atol=0.02
    )
    np.testing.assert_allclose(log_softmax(got.log_posteriors), got.log_posteriors, atol=1e-12)


def test_a_file_of_several_seeds_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "mine.csv"
    file.write_text("clip,speaker,fold,seed,label,x,y\na,s,0,0,x,0.5,0.5\na,s,0,1,x,0.5,0.5\n")
    with pytest.raises(EnsembleError, match=r"several seeds \(0, 1\); keep one a file"):
        read_predictions(file)

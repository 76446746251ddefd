"""The command as a user meets it: a whole search, and every mistake in one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from search.run import main


@pytest.fixture(autouse=True)
def _own_cache(cache_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMOTION_CACHE", str(cache_folder))


def one_line(capsys: pytest.CaptureFixture[str], arguments: list[object]) -> str:
    """Runs the command in this process; it must end with exit code 2 and one line."""
    assert main([str(a) for a in arguments]) == 2
    err = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(err) == 1
    return err[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "nowhere"], "No index.json in 'nowhere'. Make shards with: python -m datasets.prepare"),
        (["--preset", "fast"], "Unknown preset 'fast'. Known: quick, standard, thorough."),
        (["--protocol", "fair"], "Unknown protocol 'fair'. Known: ravdess-luna5, ravdess-emobox6, iemocap"),
        (["--protocol", "random", "--outer"], "outer holds speakers out: --protocol random does not"),
        (["--protocol", "speaker-kfold:9"], "needs 9 speakers or more, the corpus has 4"),
        (["--protocol", "ravdess-luna5"], "knows Actor_01 to Actor_24, not 'speaker_00'"),
        (["--classes", "happy,joyful"], "Unknown class 'joyful'. Known: neutral, happy, sad"),
        (["--classes", "happy"], "two or more different classes"),
        (["--only", "resnet999"], "Unknown architecture 'resnet999'. Known: alexnet"),
        (["--resume", "nothing"], "No run 'nothing'"),
        (["--resume", "nothing", "--seed", "4"], "No run 'nothing'"),
        (["--cache-gb", "0.000001"], "Raise --cache-gb"),
        ([*["--protocol", "speaker-kfold:2", "--only", "action_units", "--runner", "train", "--workers", "500"]],
         "500 trials of 1 workers would take 500 CPUs, this machine has"),
    ],
)  # fmt: skip
def test_a_mistake_ends_in_one_line(
    tiny_shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    if "--cache-gb" in arguments:
        monkeypatch.setenv("EMOTION_CACHE", str(tmp_path / "small"))
    data = [] if "--data" in arguments else ["--data", tiny_shards]
    assert message in one_line(capsys, [*data, "--runs-dir", tmp_path / "runs", *arguments])
    assert not (tmp_path / "runs").exists(), "a mistake must leave no run behind"


def test_cuda_without_a_gpu_is_said(
    tiny_shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    arguments = ["--data", tiny_shards, "--protocol", "speaker-kfold:2", "--device", "cuda"]
    line = one_line(capsys, [*arguments, "--runs-dir", tmp_path])
    assert "torch finds no GPU" in line


def test_a_dry_run_says_what_would_be_searched_and_leaves_nothing(
    tiny_shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--data", str(tiny_shards), "--protocol", "speaker-kfold:2", "--dry-run"]
    arguments += ["--only", "functionals,frame_cnn,action_units,concatenation,bilinear"]
    assert main([*arguments, "--runs-dir", str(tmp_path / "runs")]) == 0
    err = capsys.readouterr().err
    assert "functionals: about" in err
    assert "early concatenation, bilinear" in " ".join(err.split())
    assert not (tmp_path / "runs").exists()

"""Contracts that every registered corpus fulfils, and what the registry gives to others."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from datasets.corpora.registry import CORPORA, RegisteredCorpus
from datasets.prepare import main
from datasets.protocols.published import DEFAULT_PROTOCOLS, EXCLUDED_FOLDS, PROTOCOLS

ROOT = Path(__file__).parents[3]
of_every_corpus = pytest.mark.parametrize("corpus", CORPORA.values(), ids=list(CORPORA))

OWN_OPTIONS = {
    "ravdess": {"--song"},
    "iemocap": {"--classes", "--keep-excited", "--part"},
    "recola": {"--gold", "--window", "--hop"},
    "crema_d": {"--target", "--ties"},
    "manifest": {"--ties"},
    "synthetic": {"--speakers", "--repetitions", "--seed"},
    "synthetic_traces": {"--speakers", "--minutes", "--seed", "--gold", "--window", "--hop"},
}


def printed(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """The exit code of a command that ends early, and what it printed."""
    with pytest.raises(SystemExit) as end:
        main(arguments)
    captured = capsys.readouterr()
    assert isinstance(end.value.code, int)
    return end.value.code, captured.out + captured.err


def test_help_lists_every_corpus_with_its_description(capsys: pytest.CaptureFixture[str]) -> None:
    code, text = printed(["--help"], capsys)
    assert code == 0
    for corpus in CORPORA.values():
        assert corpus.description in " ".join(text.split())


@of_every_corpus
def test_help_of_a_corpus_shows_its_own_options_and_the_common_ones(
    corpus: RegisteredCorpus, capsys: pytest.CaptureFixture[str]
) -> None:
    code, text = printed([corpus.name, "--help"], capsys)
    assert code == 0
    known = {word.strip("[]") for word in text.partition("options:")[0].split()}
    assert {"--root", "--out", "--features", "--frames", "--workers"} <= known
    assert known & set().union(*OWN_OPTIONS.values()) == OWN_OPTIONS[corpus.name]


@of_every_corpus
def test_an_option_of_another_corpus_is_one_line_and_exit_code_2(
    corpus: RegisteredCorpus, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (foreign, *_) = sorted(set().union(*OWN_OPTIONS.values()) - OWN_OPTIONS[corpus.name])
    place = ["--root", str(tmp_path), "--out", str(tmp_path / "out")]
    code, text = printed([corpus.name, *place, foreign, "1"], capsys)
    assert (code, text) == (
        2,
        f"error: Unknown option '{foreign}' of the corpus {corpus.name}. "
        f"Known: python -m datasets.prepare {corpus.name} --help\n",
    )


@of_every_corpus
def test_protocols_list_each_speaker_once_and_the_default_is_one_of_them(
    corpus: RegisteredCorpus,
) -> None:
    names = [protocol.name for protocol in corpus.protocols]
    assert set(names) <= set(PROTOCOLS)
    assert corpus.default_protocol == DEFAULT_PROTOCOLS.get(corpus.name, "")
    assert corpus.default_protocol in (names or [""])
    for protocol in corpus.protocols:
        speakers = [speaker for group in protocol.groups for speaker in group]
        assert len(speakers) == len(set(speakers))
        assert (protocol.kind == "balanced") == (not speakers)
        folds = set(range(len(protocol.groups)))
        for fold, others in enumerate(EXCLUDED_FOLDS[protocol.name]):
            assert set(others) < folds - {fold}


def test_the_command_starts_without_what_renders_the_synthetic_corpora() -> None:
    program = "import sys, datasets.prepare; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    modules = set(done.stdout.split())
    assert "datasets.corpora.synthetic_options" in modules
    assert not modules & {"datasets.corpora.synthetic", "scipy.signal", "torch"}

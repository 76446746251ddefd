"""The synthetic corpora on the command line; what renders them is imported where it is needed.

Those imports take half a second, which no worker process should spend.
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace

from datasets.clips import Corpus, DataError
from datasets.corpora import recola
from datasets.corpora.option_types import positive
from datasets.corpora.registry import register_corpus


def _add_common_options(parser: ArgumentParser) -> None:
    parser.add_argument("--speakers", type=positive, default=12, help="speakers (default 12)")
    parser.add_argument("--seed", type=int, default=0, help="seed (default 0)")


def _add_options(parser: ArgumentParser) -> None:
    _add_common_options(parser)
    parser.add_argument(
        "--repetitions",
        type=positive,
        default=3,
        help="clips per speaker and emotion (default 3)",
    )


@register_corpus(
    "synthetic",
    "voices and faces of six emotions, rendered into the root from a seed",
    options=_add_options,
    reads_features=True,
)
def _load(options: Namespace) -> Corpus:
    from datasets.corpora.synthetic import load_synthetic

    if options.features:
        raise DataError("The synthetic corpus renders its own features; remove --features.")
    return load_synthetic(
        options.root,
        speakers=options.speakers,
        repetitions=options.repetitions,
        seed=options.seed,
    )


def _add_trace_options(parser: ArgumentParser) -> None:
    _add_common_options(parser)
    parser.add_argument(
        "--minutes", type=float, default=1.0, help="length of each recording (default 1)"
    )
    recola.add_options(parser)


@register_corpus(
    "synthetic_traces",
    "a corpus like RECOLA, rendered into the root from a seed",
    options=_add_trace_options,
)
def _load_traces(options: Namespace) -> Corpus:
    from datasets.corpora.synthetic_traces import make_synthetic_traces

    make_synthetic_traces(
        options.root, speakers=options.speakers, minutes=options.minutes, seed=options.seed
    )
    return recola.load(options)

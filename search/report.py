"""Write a run's `report.html` again, with its figures and tables: `python -m search.report RUN`."""

from __future__ import annotations

import argparse
import sys
from contextlib import suppress
from pathlib import Path

from rich.console import Console

from ensembles import EnsembleError
from search.reporting.html import PAGE


def draw_report(run: Path, console: Console) -> None:
    """Writes `report.html`; what goes wrong is a warning, since the results are there already."""
    try:
        # Here, since matplotlib takes a second to import.
        from search.reporting.html.document import write_page

        _, wrong = write_page(run)
    except Exception as error:
        with suppress(OSError):
            (run / PAGE).unlink(missing_ok=True)  # an earlier one is of earlier results
        wrong = [f"{PAGE} was not written: {error or repr(error)}"]
    for line in wrong:
        text = " ".join(f"warning: {line}".split())
        console.print(text, markup=False, highlight=False, soft_wrap=True)


def main(arguments: list[str] | None = None) -> int:
    """Exit code 0: written; 2: in one line, why not."""
    parser = argparse.ArgumentParser(
        prog="python -m search.report",
        description="Writes a run's report.html, figures and tables from what its folder holds.",
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of a run with results")
    run = parser.parse_args(arguments).run
    try:
        from search.reporting.html.document import write_page

        page, wrong = write_page(run)
    except (EnsembleError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for line in wrong:
        print(f"warning: {line}", file=sys.stderr)
    print(page)
    return 0


if __name__ == "__main__":
    sys.exit(main())

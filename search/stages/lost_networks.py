"""Train experts again whose networks an earlier end of the run did not keep."""

from __future__ import annotations

from ensembles.bank.training_variant import Variant
from search.persistence import weights
from search.stages.session import Session

_AGAIN = Variant("repeated")


def restore_weights(session: Session) -> None:
    """Train needed experts again whose networks are lost, with the same seed: the same networks."""
    run, assessment = session.run, session.found.assessment
    weights.fetch(run, assessment)
    lost = weights.lost(run, assessment)
    if not lost or session.interrupt.asked:
        return
    session.screen.print(f"training {len(lost)} experts again, whose networks were not kept")
    session.train([session.training(name, _AGAIN, keep_weights=True) for name in lost])
    for name in lost:
        weights.put_back(run, name, name + _AGAIN.suffix)

"""Fitted fusions as plain numbers: by hand, and through JSON."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from ensembles import EnsembleError
from ensembles.fusion import rules
from ensembles.fusion.rules import (
    Calibrated,
    LinearMap,
    Pooling,
    Rule,
    Stacked,
    Tempered,
    posterior_table,
    rule_from_json,
)
from ensembles.metrics import log_softmax

LOG_POSTERIORS = np.log([[[0.8, 0.2]], [[0.5, 0.5]]])
"""Two experts, one clip, two classes."""

POOLING: dict[str, Any] = {
    "kind": "pooling",
    "space": "log",
    "weights": [1.0, 0.5],
    "floor": -30.0,
}
LINEAR: dict[str, Any] = {
    "kind": "linear",
    "inputs": "logits",
    "coefficients": [[1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0]],
    "intercept": [0.0, 0.0],
}
TEMPERED: dict[str, Any] = {"kind": "tempered", "powers": [2.0, 0.5], "inner": POOLING}
CALIBRATED: dict[str, Any] = {
    "kind": "calibrated",
    "scale": [1.0, 2.0],
    "offset": [0.0, -0.5],
    "inner": LINEAR,
}
STACKED: dict[str, Any] = {"kind": "stacked", "first": [CALIBRATED, TEMPERED], "second": POOLING}
LAYERED = [TEMPERED, CALIBRATED, STACKED]


def test_pooling_in_log_space_multiplies_powers_of_the_posteriors() -> None:
    # 0.8² × 0.5 to 0.2² × 0.5 is 16 to 1.
    pooled = Pooling(np.array([2.0, 1.0]), "log").apply(LOG_POSTERIORS)
    np.testing.assert_allclose(np.exp(pooled), [[16 / 17, 1 / 17]])


def test_pooling_in_arithmetic_space_mixes_the_posteriors() -> None:
    # (3 × 0.8 + 0.5) / 4; the sum of the weights does not matter.
    for weights in ([3.0, 1.0], [0.75, 0.25]):
        pooled = Pooling(np.array(weights), "arithmetic").apply(LOG_POSTERIORS)
        np.testing.assert_allclose(np.exp(pooled), [[0.725, 0.275]])


def test_a_floor_takes_the_veto_from_an_overconfident_expert() -> None:
    sure = np.array([[[0.0, -1000.0]], [[np.log(0.1), np.log(0.9)]]])
    weights = np.array([1.0, 1.0])
    vetoed = np.exp(Pooling(weights, "log").apply(sure))
    floored = np.exp(Pooling(weights, "log", floor=np.log(0.01)).apply(sure))
    np.testing.assert_allclose(vetoed, [[1.0, 0.0]], atol=1e-12)
    # 1 × 0.1 to 0.01 × 0.9.
    np.testing.assert_allclose(floored, [[0.1 / 0.109, 0.009 / 0.109]])


@pytest.mark.parametrize("space", ["log", "arithmetic"])
def test_pooling_the_used_experts_alone_gives_the_same(space: Any) -> None:
    three = np.concatenate([LOG_POSTERIORS, np.log([[[0.01, 0.99]]])])[[0, 2, 1]]
    whole = Pooling(np.array([0.7, 0.0, 0.2]), space, floor=-5.0)
    assert whole.used.tolist() == [0, 2]
    np.testing.assert_array_equal(whole.of_used().apply(three[[0, 2]]), whole.apply(three))


def test_pooling_that_trusts_no_expert_still_uses_one_and_is_undecided() -> None:
    nothing = Pooling(np.zeros(2), "log")
    assert len(nothing.used) > 0
    pooled = nothing.of_used().apply(LOG_POSTERIORS[nothing.used])
    np.testing.assert_allclose(np.exp(pooled), [[0.5, 0.5]])


@pytest.mark.parametrize(
    "rule",
    [
        Pooling(np.ones(1), "log"),
        Pooling(np.array([3.0]), "arithmetic"),
        LinearMap(np.eye(2), np.zeros(2), "logits"),
    ],
    ids=["log", "arithmetic", "linear"],
)
def test_one_expert_alone_is_the_identity(rule: Rule) -> None:
    np.testing.assert_allclose(rule.apply(LOG_POSTERIORS[:1]), LOG_POSTERIORS[0])
    assert rule.used.tolist() == [0]


def test_a_linear_map_reads_the_experts_side_by_side() -> None:
    # Class 0: 2 p(0 | first) + 1; class 1: 4 p(1 | second).
    rule = LinearMap(
        np.array([[2.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 4.0]]),
        np.array([1.0, 0.0]),
        "probabilities",
    )
    np.testing.assert_allclose(rule.apply(LOG_POSTERIORS), log_softmax(np.array([[2.6, 2.0]])))
    assert rule.used.tolist() == [0, 1]


def test_each_expert_is_tempered_before_the_rule() -> None:
    # 0.8² to 0.2² is 16 to 1; the other one, to the power 3, stays undecided.
    tempered = Tempered(Pooling(np.ones(2), "arithmetic"), np.array([2.0, 3.0]))
    np.testing.assert_allclose(
        np.exp(tempered.apply(LOG_POSTERIORS)), [[(16 / 17 + 0.5) / 2, (1 / 17 + 0.5) / 2]]
    )


def test_classes_are_calibrated_after_the_rule() -> None:
    # 0.8^2 × 1 to 0.2^1 × 3.
    rule = Calibrated(
        Pooling(np.array([1.0, 0.0]), "log"), np.array([2.0, 1.0]), np.log([1.0, 3.0])
    )
    np.testing.assert_allclose(
        np.exp(rule.apply(LOG_POSTERIORS)), [[0.64 / 1.24, 0.6 / 1.24]], rtol=1e-9
    )


def test_the_second_layer_reads_what_the_first_ones_say() -> None:
    first = (Pooling(np.array([1.0, 0.0]), "log"), Pooling(np.array([0.0, 1.0]), "log"))
    rule = Stacked(first, Pooling(np.array([3.0, 1.0]), "arithmetic"))
    np.testing.assert_allclose(np.exp(rule.apply(LOG_POSTERIORS)), [[0.725, 0.275]])


@pytest.mark.parametrize(
    "rule",
    [
        Tempered(Pooling(np.array([0.7, 0.0, 0.2]), "log"), np.array([1.0, 5.0, 2.0])),
        Calibrated(Pooling(np.array([0.7, 0.0, 0.2]), "log"), np.ones(2), np.array([0.1, 0.0])),
        Stacked(
            (
                Pooling(np.array([0.7, 0.0, 0.2]), "log"),
                Pooling(np.array([0.0, 1.0, 0.0]), "log"),
                Tempered(Pooling(np.array([1.0, 0.0, 0.0]), "log"), np.array([1.0, 5.0, 2.0])),
            ),
            Pooling(np.array([1.0, 0.0, 0.5]), "arithmetic"),
        ),
    ],
    ids=["tempered", "calibrated", "stacked"],
)
def test_rules_of_rules_of_the_used_experts_alone_give_the_same(rule: Rule) -> None:
    three = np.concatenate([LOG_POSTERIORS, np.log([[[0.01, 0.99]]])])[[0, 2, 1]]
    assert rule.used.tolist() == [0, 2]
    np.testing.assert_allclose(rule.of_used().apply(three[[0, 2]]), rule.apply(three), atol=1e-12)
    assert rule.of_used().used.tolist() == [0, 1]


def test_a_stack_keeps_the_columns_of_a_linear_map_that_belong_to_used_experts() -> None:
    three = np.concatenate([LOG_POSTERIORS, np.log([[[0.01, 0.99]]])])
    linear = LinearMap(np.arange(12).reshape(2, 6) / 7, np.array([0.1, -0.3]), "probabilities")
    rule = Stacked((linear, Pooling(np.array([0.0, 1.0, 0.0]), "log")), Pooling(np.ones(2), "log"))
    assert rule.of_used().used.tolist() == [0, 1, 2]
    np.testing.assert_array_equal(rule.of_used().apply(three), rule.apply(three))


def test_the_table_of_logits_is_floored_and_that_of_probabilities_is_not() -> None:
    sure = np.array([[[0.0, -1000.0]]])
    np.testing.assert_array_equal(posterior_table(sure, "logits"), [[0.0, -20.0]])
    np.testing.assert_array_equal(posterior_table(sure, "probabilities"), [[1.0, 0.0]])


@pytest.mark.parametrize(
    "rule",
    [
        Pooling(np.array([0.1, 1 / 3]), "log", -30.0),
        Pooling(np.array([0.1, 1 / 3]), "arithmetic"),
        LinearMap(np.arange(8).reshape(2, 4) / 7, np.array([0.1, -0.3]), "logits"),
        LinearMap(np.arange(8).reshape(2, 4) / 7, np.array([0.1, -0.3]), "probabilities"),
        *(rule_from_json(document, 2, 2) for document in LAYERED),
    ],
    ids=["log", "arithmetic", "logits", "probabilities", "tempered", "calibrated", "stacked"],
)
def test_a_rule_comes_back_from_json_to_the_bit(rule: Rule) -> None:
    again = rule_from_json(json.loads(json.dumps(rule.to_json())), experts=2, classes=2)
    np.testing.assert_array_equal(again.apply(LOG_POSTERIORS), rule.apply(LOG_POSTERIORS))
    assert again.to_json() == rule.to_json()


@pytest.mark.parametrize(
    ("document", "experts", "classes"),
    [
        (POOLING, 3, 2),
        (POOLING, 1, 2),
        (LINEAR, 3, 2),
        (LINEAR, 1, 2),
        (LINEAR, 2, 3),
        (TEMPERED, 3, 2),
        (CALIBRATED, 2, 3),
        (STACKED, 3, 2),
    ],
)
def test_parameters_of_another_size_are_refused(
    document: dict[str, Any], experts: int, classes: int
) -> None:
    with pytest.raises(EnsembleError, match=f"not fit {experts} experts and {classes} classes"):
        rule_from_json(document, experts, classes)


@pytest.mark.parametrize(
    "document", [POOLING, LINEAR, *LAYERED], ids=lambda document: document["kind"]
)
def test_every_key_of_a_rule_is_needed(document: dict[str, Any]) -> None:
    rule_from_json(document, 2, 2)
    for key in document:
        without = {name: value for name, value in document.items() if name != key}
        with pytest.raises(EnsembleError, match=f"Damaged fusion parameters: KeyError.'{key}'"):
            rule_from_json(without, 2, 2)


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({**POOLING, "kind": "forest"}, "Unknown kind of fusion 'forest'"),
        ({**POOLING, "space": "cubic"}, "cubic"),
        ({**POOLING, "weights": ["much", 1.0]}, "Damaged fusion parameters"),
        ({**POOLING, "weights": [float("nan"), 1.0]}, "not finite"),
        ({**POOLING, "weights": [-1.0, 1.0]}, "negative"),
        ({**POOLING, "floor": "low"}, "Damaged fusion parameters"),
        ({**LINEAR, "inputs": "votes"}, "votes"),
        ({**LINEAR, "intercept": [float("inf"), 0.0]}, "not finite"),
        ({**LINEAR, "coefficients": [[1.0], [1.0, 2.0]]}, "Damaged fusion parameters"),
        ({**TEMPERED, "powers": [0.0, 1.0]}, "not positive"),
        ({**TEMPERED, "inner": "pooling"}, "Damaged fusion parameters"),
        ({**CALIBRATED, "scale": [-1.0, 1.0]}, "negative scale"),
        ({**STACKED, "first": []}, "do not fit"),
        ({**STACKED, "first": 3}, "Damaged fusion parameters"),
    ],
)
def test_senseless_parameters_are_refused(document: dict[str, Any], message: str) -> None:
    with pytest.raises(EnsembleError, match=message):
        rule_from_json(document, 2, 2)


def test_rules_within_rules_end_somewhere() -> None:
    document = POOLING
    for _ in range(7):
        document = {**TEMPERED, "inner": document}
    rule_from_json(document, 2, 2)
    with pytest.raises(EnsembleError, match="more than 8 layers"):
        rule_from_json({**TEMPERED, "inner": document}, 2, 2)


def test_a_kind_that_a_fusion_method_brings_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    def register(module: str) -> None:
        class Doubled(Pooling, kind="doubled"):
            """Defined when the methods are imported."""

        assert (module, Doubled.kind) == ("ensembles.fusion.methods", "doubled")

    monkeypatch.setattr(rules.Rule, "kinds", dict(rules.Rule.kinds))
    monkeypatch.setattr(rules, "import_module", register)
    rule = rule_from_json({**POOLING, "kind": "doubled"}, 2, 2)
    assert rule.to_json() == {**POOLING, "kind": "doubled"}

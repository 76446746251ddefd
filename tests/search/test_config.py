from __future__ import annotations

from pathlib import Path

import pytest

from search.config import ConfigError, parse_arguments, parse_duration


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("30m", 1800), ("2h", 7200), ("1h30m", 5400), ("0.5m", 30)]
)
def test_durations_are_read(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "30", "m", "-5m", "5 minutes", "0s"])
def test_an_impossible_duration_says_what_is_expected(text: str) -> None:
    with pytest.raises(ConfigError, match="time_budget must be like 90s, 30m, 2h"):
        parse_duration(text)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--preset", "fast"], "Unknown preset 'fast'. Known: quick, standard, thorough."),
        (
            ["--metric", "auc"],
            "Unknown metric 'auc'. Known: accuracy, uar, macro_f1, log_loss, ccc.",
        ),
        (["--trials", "0"], "trials must be 1 or more, got 0."),
        (["--trials", "many"], "trials must be of type int, got 'many'."),
        (["--cache-gb", "-1"], "cache_gb must be positive, got -1.0."),
        (["--name", "a/b"], "name must be letters, digits and . _ + -, got 'a/b'."),
        (["--name", "a", "--resume", "b"], "Give one of name"),
        (["--trails", "3"], "Known keys: data, preset, trials"),
        (["--config", "nowhere.yaml"], "File does not exist"),
    ],
)
def test_a_wrong_setting_is_one_line_that_names_it(arguments: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse_arguments(arguments)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_an_unknown_key_in_the_file_lists_the_known_ones(tmp_path: Path) -> None:
    file = tmp_path / "search.yaml"
    file.write_text("trails: 3\n")
    with pytest.raises(ConfigError, match=r"trails.*Known keys: data, preset"):
        parse_arguments(["--config", str(file)])


def test_the_command_line_wins_over_the_file_and_the_file_over_the_preset(tmp_path: Path) -> None:
    file = tmp_path / "search.yaml"
    file.write_text("preset: standard\ntrials: 7\ntime_budget: 10m\n")
    config, given = parse_arguments(["--config", str(file), "--time-budget", "20m"])
    assert (config.plan.trials, config.plan.minutes, config.plan.confirm_seeds) == (7, 20, 3)
    assert {"preset", "trials", "time_budget"} <= given


def test_dashes_and_bare_switches_are_understood() -> None:
    config, given = parse_arguments(["--dry-run", "--skip-corrupt", "--only", "functionals, cnn3d"])
    assert config.dry_run
    assert config.skip_corrupt
    assert config.architectures == ("functionals", "cnn3d")
    assert given == {"dry_run", "skip_corrupt", "only"}

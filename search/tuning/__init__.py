"""The searcher: Optuna studies, samplers, successive halving and the objective."""

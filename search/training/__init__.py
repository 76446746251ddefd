"""Training of one trial in plain torch: fold networks in lockstep, their losses and optimisers."""

"""The posterior bank: held-out logits of every trial, and tables of predictions."""

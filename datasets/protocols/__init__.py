"""Who is tested when: folds, published protocols, and the guard against leaks."""

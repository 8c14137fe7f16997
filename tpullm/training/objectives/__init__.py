"""What a stage of tuning minimizes, as pure functions of log-probabilities.

Each returns sums with their weights. What needs the whole batch is computed before the step. The losses and gradients
are those of trl's own functions, recorded in `tests/training/objectives/trl.json`.
"""

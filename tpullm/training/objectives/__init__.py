"""What a stage of tuning minimizes, as pure functions of log-probabilities."""

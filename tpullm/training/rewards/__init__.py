"""Rewards by rule: functions from an answer, its prompt and its fields to a number; begin at `reward_set.Rewards`."""

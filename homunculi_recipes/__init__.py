"""Experiments: functions without arguments that return a complete run configuration."""

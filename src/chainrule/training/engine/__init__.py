"""The training engine: steps, checkpoints, order of examples, schedules, averages, logs.  Knows no task."""

"""What every process needs to be a process: settings, logs, metrics, probes, problem documents."""

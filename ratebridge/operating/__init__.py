"""What operators use: the log, the metrics, the status server, the audit trail."""

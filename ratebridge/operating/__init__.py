"""What operators use: the metrics, the status server and its page, the audit trail."""

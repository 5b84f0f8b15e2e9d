"""What an operator meets: the log, the figures, the status server, the audit trail."""

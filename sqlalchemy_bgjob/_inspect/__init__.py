"""Looks at the queue and at the server, which change nothing."""

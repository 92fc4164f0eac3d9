"""Checks of the queue and the server, which change nothing."""

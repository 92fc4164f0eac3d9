"""The running worker: what both kinds share."""

"""What a worker does next, decided without a database. Pure."""

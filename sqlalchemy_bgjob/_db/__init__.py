"""SQLAlchemy and the drivers tamed: targets, connections, errors. Knows no job."""

"""The ways into the table: one job, many, from a query, by COPY."""

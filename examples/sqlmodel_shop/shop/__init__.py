"""A shop that mails a receipt for each order: SQLModel and FastAPI.

docs/sqlmodel.md shows how it works, and how to run it.
"""

"""``sqlalchemy-bgjob bench``: measures this package on the user's database."""

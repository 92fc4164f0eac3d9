"""``sqlalchemy-bgjob bench``: measures this package on a database of the user's."""

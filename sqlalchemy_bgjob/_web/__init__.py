"""The dashboard: an ASGI application; :mod:`sqlalchemy_bgjob.web` has its public names."""

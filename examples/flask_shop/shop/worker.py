"""What the worker's command names: an application of its own, and the engine of its settings."""

from . import create_app
from .extensions import db

app = create_app()

with app.app_context():
    engine = db.engine

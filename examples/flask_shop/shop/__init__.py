"""A shop that mails a receipt for each order: Flask, Flask-SQLAlchemy and Flask-Migrate.

docs/flask.md shows how it works, and how to run it.
"""

import os

from flask import Flask

from .extensions import db, migrate


def create_app() -> Flask:
    app = Flask(__name__)
    app.config.from_mapping(
        SQLALCHEMY_DATABASE_URI=os.environ["DATABASE_URL"],
        SMTP_HOST=os.environ.get("SMTP_HOST", "localhost"),
        SMTP_PORT=int(os.environ.get("SMTP_PORT", "8025")),
    )
    db.init_app(app)
    migrate.init_app(app, db)

    from .routes import shop  # late, as its modules import this package

    app.register_blueprint(shop)
    return app

"""A shop that mails a receipt for each order: Litestar, Advanced Alchemy and asyncpg.

``db.py`` has the tables and the queue, ``tasks.py`` the handlers, ``web.py`` the routes. The order
and the job that mails its receipt are one commit, so there is never the one without the other.

To run it, in the folder above this one::

    $ docker run --rm -d -p 5432:5432 -e POSTGRES_PASSWORD=shop postgres:18
    $ pip install -e "../..[asyncpg]" advanced-alchemy litestar uvicorn aiosmtpd
    $ export DATABASE_URL=postgresql+asyncpg://postgres:shop@localhost:5432/postgres

Then each of these in a terminal of its own, with ``DATABASE_URL`` there too. The first one makes
the tables; the third is a mail server that prints what it gets::

    $ uvicorn shop.web:app
    $ sqlalchemy-bgjob worker shop.db:jobs --engine shop.db:engine --import shop.tasks
    $ python -m aiosmtpd -n -l localhost:8025

And buy something. Ask for the order by the id that you get; ``receipt_sent_at`` is a time::

    $ curl localhost:8000/orders --json '{"email": "ann@example.org"}'
    $ curl localhost:8000/orders/ID

Other mail servers: ``SMTP_HOST`` and ``SMTP_PORT``.
"""

"""The comparison with other queues: ``python -m benchmarks compare``.

The workloads are those of ``sqlalchemy-bgjob bench``, in ``sqlalchemy_bgjob/bench.py``; here are
the other queues (``peers``), the run over all of them (``compare``), what it must come to
(``targets``) and how it is told (``report``).
"""

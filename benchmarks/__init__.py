"""The comparisons: ``python -m benchmarks compare`` and ``python -m benchmarks designs``.

``compare`` runs the workloads of ``sqlalchemy-bgjob bench``, which are in
``sqlalchemy_bgjob/_bench/workloads.py``, and more (``workloads``), on other queues too (``peers``);
here are also the application that they measure (``app``), the run over all of them (``compare``),
what it must come to (``targets``) and how it is told (``report``). ``designs`` measures other ways
to claim and to settle. Both run on a server of their own (``server``).
"""

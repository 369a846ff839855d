"""Benchmarks: what our code costs beside the plainest code that does the same. Run with ``make bench``.

``table`` (rows, ratios, the JSON file), ``timing`` and ``memory`` (how is measured), ``machine`` (on what), and one
module for each benchmark: ``dp_step``, ``ingest``, ``encode``, ``rounds``. See docs/benchmarks.md.
"""

"""What every participant must agree on; imports no other package of Collegium.

========================  =====================================================
module                    what it holds
========================  =====================================================
``configuration``         reading a TOML file so that every problem is told at once
``study``                 ``study.toml``: the agreed training project and its hash
``messages``              requests and replies between server and site, as bytes
``vector``                the one integer vector that leaves a site, and its layout
``manifest``              names and shapes of a model's weights; flatten, unflatten
``architectures``         the registry of networks, which are in ``networks``
``tasks``                 what is learnt: labels, loss, additive statistics, and metrics from their sums
========================  =====================================================
"""

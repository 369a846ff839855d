"""Differential privacy with the patient as its unit. Imports no other package of Collegium.

The modules do not know each other; `client.local_round` composes them and states the joint guarantee.

==================  =====================================================================
module              what it holds
==================  =====================================================================
``randomness``      noise and sampling from a cryptographic generator
``sampling``        Poisson sampling of patients
``clipping``        per-patient gradients, clipped and summed
``noise``           Gaussian noise on sums and on counts
``accounting``      what a run costs (dp-accounting), and the noise that a target needs
``planning``        what a promise costs in noise, before anybody trains
``ledger``          the site's durable record of what was spent
``audit``           statistics that test a promise from outside
==================  =====================================================================
"""

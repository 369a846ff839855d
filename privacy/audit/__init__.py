"""Statistics that test a promise of differential privacy from outside. They know no other part of `privacy`.

==================  =====================================================================
module              what it holds
==================  =====================================================================
``gaussian``        bounds on variance, distribution and correlation of claimed Gaussian noise
``proportions``     bounds on counts of independent events of a claimed probability
``one_run``         a lower bound on epsilon from guesses about canaries of one run
==================  =====================================================================

Bounds are two-sided and take the probability of a false alarm: that of a sound mechanism to fall outside.
"""

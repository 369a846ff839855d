"""The auditor: tries to break what a study promises, with the code that hospitals run, and made-up patients.

==================  =====================================================================
module              what it holds
==================  =====================================================================
``release``         one round of a study, opened as the server opens it, in each mode
``patients``        made-up patients, and models whose gradients tell them apart
``silence``         rounds of noise: calibration, each hospital's noise, reuse
``contributions``   what one patient contributes: clipping, coupling
``sampling``        who is in which step: inclusion, independence
``short_run``       a short run with hospitals that are killed, watched
``accountant``      what was charged in it
``canaries``        the one-run audit
``inversion``       pictures from gradients
``counts``          the noised count, and noised evaluation
``findings``        what checks find: ``audit.json``
``suite``           all checks, and what each claims
``page``            ``audit.html``
==================  =====================================================================
"""

"""Many hospitals on one machine: scenarios, engines, baselines, reports. Nobody imports this package.

====================  ================================================================
module                what it holds
====================  ================================================================
``command``           the command ``collegium-simulate``
``scenario``          a study and the hospitals that run it
``preparation``       hospital folders of valid DICOM from synthetic or public images
``plan``              what a study would cost in noise and bytes, before anybody trains
``runner``            a scenario from start to report
``local_exchange``    the local engine: sites in worker processes
``deployed_engine``   the deployed engine: real servers and clients on loopback
``work_folder``       the files of each virtual hospital
``baselines``         each hospital alone, and one model on the pooled data
``report``            the page about a run
``audit``             an attempt to break what a study promises
``one_process``       sites in this process, for runs that are watched
``pages``             pages from templates
``benchmarks``        what ``make bench`` runs
====================  ================================================================
"""

"""Tasks: what is learnt, from the cells of a labels file to metrics. One module each; how to add one: docs/tasks.md.

The server never sees a score or a label; it sees sums of statistics. What one patient can change of them is bounded,
which is what evaluation noise is scaled to.

========================  =====================================================
module                    what it holds
========================  =====================================================
``task``                  what all tasks have in common: two protocols
``registry``              the kinds there are, and the task of a study
``binary``                one question
``multi_class``           one of several classes
``multi_label``           several findings, each there, not there, or not known
``focal``                 the focal loss, for all of them
``histograms``            counts of scores, and the metrics that they give
``curves``                from such counts to ROC, precision, calibration and Brier score
``fourfold``              what a decision takes patients for: sensitivity to Matthews' correlation
``patients``              one score and label for each patient, from several images
========================  =====================================================
"""

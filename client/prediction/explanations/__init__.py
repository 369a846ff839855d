"""What in an image spoke for what a model says of it: maps of the image's own size, and pictures of them.

================  ==================================================================================================
``attribution``   a map, in log odds, and for which output of the model
``log_odds``      of one output, of the logits of all
``grad_cam``      Grad-CAM: the last maps of the network, weighted by the output's gradient
``occlusion``     occlusion: what covering each place does to the output
``explainer``     one of the two for one model or the mean of several; what cannot be explained is refused
``contours``      of segmentation: the edge of each structure
``colours``       which colour means what
``slices``        which slices of a volume are shown
``overlay``       an image with its map or contours, as RGB
``picture``       the same, enlarged, with slices beside it and a legend, as PNG
================  ==================================================================================================
"""

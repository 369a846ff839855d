"""From a trained model to readings of the hospital's own images.

==============  ====================================================================================================
``reading``     what a model says of one image or one series, and what was not read
==============  ====================================================================================================
"""

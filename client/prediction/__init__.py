"""From a trained model to readings of the hospital's own images.

====================  ====================================================================================="""

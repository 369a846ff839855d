"""The shared networks. Which there are, and how a study names them: `shared_models.architectures`.

============================  =====================================================
module                        what it holds
============================  =====================================================
``classifier``                what all have in common: features of an image, and a head
``small_cnn``                 a small convolutional network
``standardised_convolution``  its convolutions, where their weights are standardised
``scattering``                fixed wavelet features and a linear head, for small epsilon
``wavelets``                  the Morlet filter bank of the scattering transform
============================  =====================================================
"""

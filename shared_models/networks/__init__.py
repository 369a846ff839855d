"""The shared networks. Which there are, and how a study names them: `shared_models.catalogue`.

============================  =====================================================
module                        what it holds
============================  =====================================================
``network``                   what all have in common: features of an image, and a head
``layers``                    what they are built of, in two and three dimensions
``small_cnn``                 a small convolutional network
``standardised_convolution``  its convolutions, where their weights are standardised
``scattering``                fixed wavelet features and a linear head, for small epsilon
``wavelets``                  the Morlet filter bank of the scattering transform
``resnet``                    residual networks of 18, 34 and 50 layers
``densenet``                  the dense network of 121 layers
``vgg``                       a plain network of eight convolutions
``unet``                      U-Nets, plain and residual: logits for each pixel
============================  =====================================================
"""

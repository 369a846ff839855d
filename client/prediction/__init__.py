"""From a trained model to readings of the hospital's own images.

=================  ==================================================================================================
``reading``        what a model says of one image or one series, and what was not read
``dicom_results``  what a model says as DICOM objects, and their way into the PACS
=================  ==================================================================================================
"""

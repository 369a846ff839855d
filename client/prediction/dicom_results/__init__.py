"""What a model says, as DICOM objects beside the images that it says it of.

======================  ============================================================================================
``source_images``       what a result takes from the headers of its source images
``placing``             a mask of the model's grid on the pixels of its source
``model_identity``      which model it was, as DICOM names devices and algorithms
``codes``               coded concepts, the standard's and our own
``references``          source images as highdicom takes them, and references to them as they have to be
``measurement_report``  probabilities and decisions as a Structured Report
``segmentation``        masks as a Segmentation
``secondary_capture``   a picture as a Secondary Capture
``writer``              writes them, reading by reading
``storing``             stores them in the hospital's PACS
======================  ============================================================================================

What makes objects needs ``highdicom``, which comes with ``collegium[results]``; it is imported where it is used.
"""

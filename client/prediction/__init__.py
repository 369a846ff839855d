"""From a trained model to readings of the hospital's own images.

====================  ============================================================================================
``reading``           what a model says of one image or one series, and what was not read; what writers take
``inputs``            the files that are to be read; ``pacs_study``: those of a study in the PACS
``refusals``          what a model was not trained for, and what an explicit override takes away of it
``plane_images``      files to prepared images; ``series_volumes``: series to prepared volumes; ``taken``: on their way
``ensemble``          what one model, or the mean of several, says of prepared images
``predictor``         all of that together: files to readings, as they come
``tables``            predictions as CSV and JSON; ``patient_readings``: of patients; ``structure_sizes``: of marks
``explanations``      what spoke for a reading: maps, overlays, pictures; ``explained``: a writer that makes them
``page``              the viewer, a folder that a browser opens without a network
``onnx_export``       a model as ONNX, checked against the model
``summary``           what became of a call
``card_sections``     the model's card in sentences and tables; ``card_page``: as a page
====================  ============================================================================================
"""

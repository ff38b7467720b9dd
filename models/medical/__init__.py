"""Medical images and volumes: DICOM and NIfTI in, masks in the same format out."""

"""Medical images and volumes: DICOM and NIfTI files, and masks in their formats."""

"""Training of segmentation networks: images and masks to an artifact. services/trainings runs it as a child process."""

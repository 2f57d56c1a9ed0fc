"""What any research repository needs: errors, files, images, downloads, devices; and the lineage's augmentations."""
